"""LOSSGRAD: a step size that tunes itself by one more evaluation of the loss, on the device."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from ..optim.base import MaskedOptimizer
from ..optim.devices import moved
from ..optim.groups import LOW
from ..optim.shards import gathered, is_dtensor, local
from ..schedules.base import check_finite
from ..step.native import load_error
from .untouched import frozen_statistics, replayed, sharding_modules

Closure = Callable[[], Tensor]
CPU_SCALARS = (torch.float32, torch.float64)
RESOLUTION = 4  # roundings in the last place that a loss may be off by
CONVENTION = "a closure of LossGrad computes the loss and returns it; it must not call backward()"


class LossGrad:
    r"""Tunes the learning rate of one of our optimizers after every step (LOSSGRAD).

    .. math::
        r = \frac{f(w') - (f(w) - \langle \nabla f(w), w - w' \rangle)}{\langle \nabla f(w), w - w' \rangle}, \qquad
        h \leftarrow \begin{cases} c\,h & r \le 1/2 \\ h / c & r > 1/2 \end{cases}

    where w' are the parameters after the step with the present h: the displacement is the real one, with momentum,
    adaptive scaling, weight decay, mask and gradient weight in it, and the inner product is accumulated inside the
    fused step. On a quadratic function r <= 1/2 says that h is at most the exact line search's. The step is never
    undone, and the new h serves the next one. Where the step goes uphill to first order (the inner product is negative)
    h grows iff 2 (f(w') - f(w)) + <grad, w - w'> <= 0, which for a positive product is r <= 1/2: iff the parabola
    through both losses with that slope does not rise at w'.

    A trial loss or an inner product that is not finite gives h / c (its terms are formed in the dtype of the
    computation), an inner product of 0 leaves h as it is. A first loss of inf makes any finite one smaller, and h
    grows. Where the two losses agree to within the resolution of their dtype, and the inner product is positive but
    below it, r cannot be measured: h grows, which is right for the limit of small h, where r is 0. (In float32 h would
    otherwise shrink for ever from 1e-6.)

    Everything stays on the device: nothing waits for it, and a step can be captured in a CUDA graph. The learning rate
    of each group becomes a tensor on the device of its parameters, a float a 0-dim float64 one, and is changed in
    place, for all groups by the same factor; of a group added later, too.

    It has an optimizer's ``param_groups``, ``defaults``, ``state``, ``zero_grad``, ``add_param_group`` and state_dict,
    but is no torch.optim.Optimizer: whatever is handed one may call ``step()`` without a closure, or with a closure
    that calls backward(). Hooks and schedulers belong on ``.optimizer``.

    Source: Wojcik, Maziarka, Tabor, LOSSGRAD: automatic learning rate in gradient descent, arXiv 1902.07656.

    Args:
        optimizer: any optimizer of this package. Its learning rate is the initial h.
        c: factor > 1 by which h grows or shrinks.
        model: where given, running statistics of its normalization layers are not updated by the trial evaluation.
        replay_rng: evaluate the trial with the random numbers of the first evaluation (dropout then compares equals).
        reject_nonfinite: where the trial loss is not finite, put the parameters back, bit for bit (not the optimizer's
            states). Holds a copy of the parameters. Needs ``model`` where parameters are DTensors: what fully_shard has
            gathered for the trial is dropped.
        all_reduce: called with a tensor of the two losses, to average it in place over replicas, whose h would drift
            apart otherwise; for example ``lambda losses: dist.all_reduce(losses, dist.ReduceOp.AVG)`` (gloo has no AVG:
            sum, and divide in place). Needed in a process group of several; False says that this process trains a
            model that no other one has a replica of.

    Raises:
        TypeError: the optimizer is not one of ours, the model no module, c no number, or all_reduce neither a function
            nor False.
        ValueError: c <= 1 or not finite, there are several processes and no all_reduce, reject_nonfinite has DTensors
            and no model, or FSDP1 has flattened the parameters.
    """

    def __init__(
        self,
        optimizer: MaskedOptimizer,
        c: float = 1.05,
        *,
        model: nn.Module | None = None,
        replay_rng: bool = False,
        reject_nonfinite: bool = False,
        all_reduce: Callable[[Tensor], Any] | Literal[False] | None = None,
    ) -> None:
        if not isinstance(optimizer, MaskedOptimizer):
            raise TypeError(f"Invalid optimizer of type {type(optimizer).__name__}: must be one of lrtricks_fused")
        if not (all_reduce is None or all_reduce is False or callable(all_reduce)):
            raise TypeError(f"Invalid all_reduce={all_reduce!r}: must be a function of the losses, or False")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"Invalid model of type {type(model).__name__}: must be a torch.nn.Module, or None")
        check_replicas(all_reduce)
        self.optimizer = optimizer
        self.c = check_c(c)
        self.model = model
        self.replay_rng = replay_rng
        self.reject_nonfinite = reject_nonfinite
        self.all_reduce = all_reduce
        self.ratio: Tensor = torch.full((), torch.nan, dtype=torch.float64, device="cpu")
        self._slopes: dict[torch.device, Tensor] = {}
        self._backup: dict[Tensor, Tensor] = {}
        self._check_model()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the optimizer."""
        return self.optimizer.defaults

    @property
    def state(self) -> dict[Tensor, Any]:
        """That of the optimizer."""
        return self.optimizer.state

    def __repr__(self) -> str:
        """What it tunes, and how."""
        return f"LossGrad(c={self.c}, optimizer={self.optimizer!r})"

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy keep: all but what a step makes anew."""
        return {**self.__dict__, "_slopes": {}, "_backup": {}}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The optimizer's."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, which holds h, with c and the last r."""
        return {"optimizer": self.optimizer.state_dict(), "c": self.c, "ratio": self.ratio}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; the dictionary is not changed.

        Raises:
            KeyError, TypeError, ValueError: a part is missing or does not fit; nothing has been changed then.
        """
        c, ratio = check_c(state_dict["c"]), state_dict["ratio"]
        if not isinstance(ratio, Tensor) or ratio.shape or ratio.dtype != torch.float64:
            raise TypeError(f"Invalid ratio={ratio!r}: must be a 0-dim float64 tensor")
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.c, self.ratio = c, ratio.clone()

    def _params(self) -> Iterable[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    def _generators(self) -> list[torch.Generator]:
        found = [torch.default_generator]
        for device in {param.device for param in self._params() if param.device.type != "cpu"}:
            found.append(torch.get_device_module(device).default_generators[device.index])
        return found

    def _check_model(self) -> None:
        """Raises ValueError where slopes, or what to put back, are not to be had of these parameters."""
        if self.optimizer._flattened:
            raise ValueError(
                "Invalid optimizer: its parameters are flattened by FullyShardedDataParallel, and have no slope of the "
                "whole; those of torch.distributed.fsdp.fully_shard (FSDP2) have"
            )
        if self.reject_nonfinite and self.model is None and any(map(is_dtensor, self._params())):
            raise ValueError(
                "Invalid model=None with reject_nonfinite=True: where parameters are DTensors, it must be the model, "
                "which may hold gathered copies of them"
            )

    def _place_lr(self) -> None:
        """The learning rates as tensors beside the parameters."""
        moved_rates: dict[tuple[int, torch.device], Tensor] = {}  # what groups share, they share afterwards
        for group in self.param_groups:
            lr, params = group["lr"], group["params"]
            if not params:
                continue
            device = params[0].device
            if not isinstance(lr, Tensor):
                group["lr"] = torch.tensor(lr, dtype=torch.float64, device=device)
            elif lr.device != device:  # as a checkpoint has it that was loaded onto the CPU
                group["lr"] = moved_rates.setdefault((id(lr), device), lr.to(device))

    def step(self, closure: Closure) -> Tensor:
        """One step, and the next step size.

        Clears the gradients, evaluates the closure, calls backward() on the loss, steps, and evaluates the closure once
        more under ``no_grad``.

        Args:
            closure: computes the loss of one batch and returns it, forward only; called twice.

        Returns:
            The loss before the step, detached.

        Raises:
            RuntimeError: the closure called backward().
            ValueError, TypeError: there are several processes and no all_reduce, a model is missing, a learning rate is
                in another dtype than float32 and float64, or the closure returns no loss. Nothing has been changed
                then, but by a closure that fails in the trial alone.
        """
        check_replicas(self.all_reduce)
        self._check_model()
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor) and group["lr"].dtype not in CPU_SCALARS:
                raise TypeError(f"Invalid lr of dtype {group['lr'].dtype}: must be a float, or in float32 or float64")
        self._place_lr()
        states = [(generator, generator.get_state()) for generator in self._generators()] if self.replay_rng else []
        loss = self._evaluate(closure)
        if self.reject_nonfinite:
            self._back_up()
        self._step()
        with torch.no_grad(), ExitStack() as contexts:
            contexts.enter_context(replayed(states))
            if self.model is not None:
                contexts.enter_context(frozen_statistics(self.model))
            trial = whole(checked_loss(closure()))
        self._adapt(loss, trial)
        return loss

    def _evaluate(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = checked_loss(closure())
        if any(param.grad is not None for param in self._params()):
            raise RuntimeError(f"Invalid closure: {CONVENTION}")
        loss.backward()
        return whole(loss)

    def _step(self) -> None:
        """The optimizer's step, with its slope."""
        for slope in self._slopes.values():
            slope.zero_()
        with self.optimizer.add_slopes_to(self._slopes):
            self.optimizer.step()

    @torch.no_grad()
    def _adapt(self, loss: Tensor, trial: Tensor) -> None:
        """H for the next step, from the losses before and after this one."""
        resolution = RESOLUTION * torch.finfo(loss.dtype).eps
        loss, trial = (x if x.dtype in CPU_SCALARS else x.double() for x in (loss, trial))
        if self.all_reduce:
            losses = torch.stack((loss, trial)).double()
            self.all_reduce(losses)
            loss, trial = losses
        slopes = [moved(slope, loss.device) for slope in self._slopes.values()]
        slope = sum(slopes[1:], slopes[0]) if slopes else loss.new_zeros((), dtype=torch.float64)
        rates = (group["lr"] for group in self.param_groups if isinstance(group["lr"], Tensor))
        lrs = {id(lr): lr for lr in rates}  # of several groups that share one, one
        self.ratio = adapt(loss, trial, slope, [*lrs.values()], self.c, resolution)
        if self.reject_nonfinite:
            self._reject_unless(trial.isfinite())

    def _reject_unless(self, finite: Tensor) -> None:
        """Put back what the step has written, unless the trial loss is finite: nothing waits to learn which."""
        for tensor, old in self._backup.items():
            own, before = local(tensor), local(old)
            own.copy_(torch.where(moved(finite, own.device), own, before))
        for param in self._params():
            low = self.optimizer.state.get(param, {}).get(LOW)
            if low is not None and param in self._backup and low not in self._backup:  # made by this step
                own = local(low)
                own.mul_(moved(finite, own.device))
        for module in [] if self.model is None else sharding_modules(self.model, "FSDPModule"):
            module.reshard()  # what was gathered for the trial may have been rejected

    @torch.no_grad()
    def _back_up(self) -> None:
        params = [param for param in self._params() if param.grad is not None]  # others are none of this step's
        lows = [self.optimizer.state.get(param, {}).get(LOW) for param in params]
        mirrors = [self.optimizer._mirrors.get(param) for param in params]
        stored = [tensor for tensor in (*params, *lows, *mirrors) if tensor is not None]
        old, new = self._backup, torch.empty_like
        self._backup = {tensor: (old[tensor] if tensor in old else new(tensor)).copy_(tensor) for tensor in stored}


def adapt(loss: Tensor, trial: Tensor, slope: Tensor, lrs: list[Tensor], c: float, resolution: float) -> Tensor:
    """Multiplies ``lrs`` by what one step says of them (see LossGrad) and returns the ratio r, a 0-dim float64.

    One native op where all is on the CPU: there, too, the dozens of operations take as long as a small model's step.

    Args:
        loss: before the step, 0-dim float32 or float64.
        trial: after it, the same.
        slope: <gradient, displacement>, 0-dim float64 on the device of the losses.
        lrs: learning rates, 0-dim, on any devices.
        c: factor by which they grow or shrink.
        resolution: relative error of the losses.
    """
    native = load_error is None and all(t.is_cpu and t.dtype in CPU_SCALARS for t in (loss, trial, slope, *lrs))
    if not native:
        return _adapt(loss.double(), trial.double(), slope, lrs, c, resolution)
    ratio = torch.empty_like(slope)
    torch.ops.lrtricks_fused.lossgrad_(loss, trial, slope, ratio, lrs, c, resolution)
    return ratio


def _adapt(loss: Tensor, trial: Tensor, slope: Tensor, lrs: list[Tensor], c: float, resolution: float) -> Tensor:
    """The same in torch's operations; twin of ``csrc/core/lossgrad.h``."""
    rise = trial - loss
    error = rise + slope  # of the tangent at the old parameters
    finite = trial.abs() < torch.inf
    unresolved = (slope > 0) & (torch.maximum(slope, rise.abs()) < loss.abs() * resolution)
    grows = (error + rise <= 0) | unresolved  # false for NaN
    up, down, same = (torch.full_like(slope, factor) for factor in (c, 1 / c, 1.0))  # float64
    factor = torch.where(finite & (slope == 0), same, torch.where(finite & grows, up, down))
    for lr in lrs:
        lr.mul_(moved(factor, lr.device))
    return error / slope


def checked_loss(loss: Any) -> Tensor:
    """``loss``; raises TypeError or ValueError unless it is a tensor of one real number."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"Invalid closure: it returned {loss!r}, must return the loss, a tensor")
    if loss.numel() != 1 or not loss.is_floating_point():
        what = f"of shape {tuple(loss.shape)} and dtype {loss.dtype}"
        raise ValueError(f"Invalid closure: it returned a tensor {what}, must return one floating-point number")
    return loss


def whole(loss: Tensor) -> Tensor:
    """A loss without its graph, as a plain tensor."""
    return gathered(loss.detach()) if is_dtensor(loss) else loss.detach()


def check_c(c: float) -> float:
    """``c`` as a float; raises TypeError or ValueError unless it is a finite number > 1."""
    c = float(check_finite("c", c))
    if not c > 1:
        raise ValueError(f"Invalid c={c}: must be greater than 1")
    return c


def check_replicas(all_reduce: Callable[[Tensor], Any] | Literal[False] | None) -> None:
    """Raises ValueError for None in a process group of several."""
    if all_reduce is None and distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size()
        if processes > 1:
            raise ValueError(
                f"Invalid all_reduce=None: the step sizes of {processes} processes would drift apart; "
                "average the losses, or give False if this one's model has no replica"
            )
