"""Gradient release: every parameter is stepped as soon as the backward pass has its gradient, which is freed then."""

import sys
from types import TracebackType
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from typing_extensions import Self

from ..step.operands import waited
from .base import MaskedOptimizer
from .checks import check_count
from .groups import Group
from .parts import Part
from .shards import is_dtensor

# Wrappers that reduce gradients over processes after autograd has accumulated them, by module and class.
_REDUCING = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
    ("torch.distributed._composable.replicate", "DDP"),
)
_attached: WeakSet[MaskedOptimizer] = WeakSet()


class StepInBackward:
    """The hooks of :func:`step_in_backward`: ``remove()`` them, or use it as a context manager, which does."""

    def __init__(self, model: nn.Module, optimizer: MaskedOptimizer, n: int) -> None:
        if not isinstance(optimizer, MaskedOptimizer):
            name = type(optimizer).__name__
            raise TypeError(f"Invalid optimizer of type {name}: must be one of lrtricks_fused, without a wrapper")
        if optimizer in _attached:
            raise ValueError("Invalid optimizer: it is stepped in backward already; remove() the handle of that first")
        self.n = check_count("n", n, 1)
        _check_model(model, optimizer)
        _check_optimizer(optimizer)
        self._optimizer = ref(optimizer)  # a hook of a parameter is not seen by Python's collector
        self._places: dict[int, tuple[int, int]] = {}
        self._passes = 0  # that are over, of the n
        self._task = -1  # the backward pass, by autograd's number, whose end is waited for
        self._accumulated: list[ref[Tensor]] = []  # what had a gradient at the end of a pass that was not the last
        params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
        self._hooks: list[Any] = [param.register_post_accumulate_grad_hook(self._hook) for param in params]
        self._hooks.append(optimizer.register_step_pre_hook(self._begin))
        _attached.add(optimizer)

    def remove(self) -> None:
        """Step by ``optimizer.step()`` alone, from now on. Gradients that have been accumulated stay."""
        for hook in self._hooks:
            hook.remove()
        optimizer = self._optimizer()
        if self._hooks and optimizer is not None:  # a second time, it may be another handle's
            _attached.discard(optimizer)
        self._hooks.clear()

    def __enter__(self) -> Self:
        """The handle itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove the hooks."""
        self.remove()

    def _begin(self, optimizer: MaskedOptimizer, *_: Any) -> None:
        """Of the user's own step, which takes what has been accumulated: the n passes begin anew."""
        _check_optimizer(optimizer)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """The next pass is the first: what had been accumulated is stepped, or gone."""
        self._passes, self._task, self._accumulated = 0, -1, []

    def _hook(self, param: Tensor) -> None:
        """Of a gradient that is complete: the last pass of the n steps, and earlier ones go on accumulating."""
        if self.n > 1:
            self._watch_the_end(param)
        optimizer = self._optimizer()
        if self._passes == self.n - 1 and optimizer is not None:
            _step(optimizer, param, self._places)

    def _watch_the_end(self, first: Tensor) -> None:
        """Have the end of this backward pass counted; a pass that failed has none, and another number.

        ``first`` is the parameter whose gradient tells of the pass. Where none of the others has that of an earlier
        pass any more, ``zero_grad()`` has dropped them all, and the passes begin anew.
        """
        task = torch._C._current_graph_task_id()
        if task != self._task:
            others = [param for held in self._accumulated if (param := held()) is not None and param is not first]
            if others and all(param.grad is None for param in others):
                self._begin_anew()
            self._task = task
            Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        """The end of a pass. After the last, gradients of earlier ones are stepped that it has not reached."""
        self._passes, self._task = self._passes + 1, -1
        optimizer = self._optimizer()
        if optimizer is None:
            return
        left = [param for param in optimizer._params() if param.grad is not None]
        if self._passes < self.n:
            self._accumulated = list(map(ref, left))
            return
        self._begin_anew()
        for param in left:
            _step(optimizer, param, self._places)


@torch.no_grad()
def _step(optimizer: MaskedOptimizer, param: Tensor, places: dict[int, tuple[int, int]]) -> None:
    """The step of one parameter, whose gradient goes; nothing where it is in the optimizer no more."""
    _check_optimizer(optimizer)
    part = _part(optimizer, param, places)
    if part is not None:
        with torch._C.DisableTorchFunctionSubclass():
            optimizer._take([part], whole=False)
        vars(optimizer)["_opt_called"] = True  # by which torch's schedulers know that a step came before theirs
        param.grad = None


def _part(optimizer: MaskedOptimizer, param: Tensor, places: dict[int, tuple[int, int]]) -> Part | None:
    """The parameter alone; ``places`` remembers the group and the place in it by the parameter's id."""
    groups = optimizer.param_groups
    if not _is_at(groups, places.get(id(param)), param):
        places.clear()
        for number, group in enumerate(groups):
            places.update({id(other): (number, place) for place, other in enumerate(group["params"])})
    if param.grad is None or id(param) not in places:
        return None
    group = groups[places[id(param)][0]]
    checked = optimizer._checked_group(group)
    optimizer._check_state(group, [param])
    return Part(("in backward", id(param)), group, checked, [param], [waited(param.grad)])


def _is_at(groups: list[Group], where: tuple[int, int] | None, param: Tensor) -> bool:
    if where is None or where[0] >= len(groups):
        return False
    params = groups[where[0]]["params"]
    return where[1] < len(params) and params[where[1]] is param


def _check_optimizer(optimizer: MaskedOptimizer) -> None:
    """Raises ValueError for what needs all gradients before the first parameter is stepped."""
    max_norm = getattr(optimizer, "max_norm", None)
    if max_norm is not None:
        raise ValueError(f"Invalid max_norm={max_norm} for steps in backward: the norm of all gradients is unknown")
    if optimizer.track_metrics:
        raise ValueError("Invalid track_metrics=True for steps in backward: metrics are of all parameters")
    if getattr(optimizer, "found_inf", None) is not None:
        raise ValueError("Invalid found_inf for steps in backward: GradScaler looks for overflows in all gradients")


def _check_model(model: nn.Module, optimizer: MaskedOptimizer) -> None:
    """Raises TypeError or ValueError unless autograd's gradients of the model are those that the optimizer steps by."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"Invalid model of type {type(model).__name__}: must be a torch.nn.Module")
    for module in model.modules():
        for where, name in _REDUCING:
            kind = getattr(sys.modules.get(where), name, None)
            if kind is not None and isinstance(module, kind):
                raise TypeError(
                    f"Invalid model: its {name} reduces gradients after the hooks of its parameters have run"
                )
    known = set(model.parameters())
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param not in known:
                raise ValueError(f"Invalid model: it lacks a parameter of the optimizer, of shape {tuple(param.shape)}")
            if is_dtensor(param):
                raise TypeError(
                    f"Invalid model: its parameter of shape {tuple(param.shape)} is a DTensor, whose gradient may have "
                    "to be reduced by all ranks"
                )


def step_in_backward(model: nn.Module, optimizer: MaskedOptimizer, n: int = 1) -> StepInBackward:
    r"""Step every parameter in the backward pass, as soon as its gradient is complete, and free the gradient.

    .. math:: p \leftarrow p - \eta\,\mathrm{keep}(\mathrm{rule}(p, \textstyle\sum_{k=1}^{n} \nabla f_k(p)))

    There is only ever a part of the gradients, so that the peak of memory is lower by nearly their size.
    The optimizer stays one: its groups, schedulers, states and checkpoints work as ever, and the bits are
    those of ordinary steps. ``optimizer.step()`` may be called as before, and steps what has a gradient still, such as
    parameters that were added since; after a backward pass there is nothing left for it to do. A parameter that is used
    in several places is stepped once, one that is not used or is frozen not at all.

    A step that is refused raises from ``backward()``; parameters whose gradients came before it have been stepped by
    then. Checkpointed activations need ``use_reentrant=False``: the other kind runs backward passes in the backward
    pass, each of which would be taken for a whole one.

    Args:
        model: what the parameters belong to, the outermost module: wrappers around it are not seen; those that the
            optimizer does not have keep their gradients.
        optimizer: one of this package, without ``max_norm`` and without torch.amp.GradScaler, both of which need all
            gradients at once.
        n: backward passes whose gradients are accumulated; the parameters are stepped in the last of them. They begin
            anew after ``zero_grad()`` has dropped the gradients; of a single parameter, or where they were set to 0,
            that is not seen.

    Returns:
        A handle: ``remove()`` takes the hooks away, as does the end of a ``with`` block of it.

    Raises:
        TypeError: the optimizer is a wrapper (LossGrad) or another's; the model reduces gradients over processes, as
            DistributedDataParallel and FSDP do after these hooks, or has DTensors.
        ValueError: n < 1; the optimizer has parameters that the model lacks, is attached already, or clips.
    """
    return StepInBackward(model, optimizer, n)
