"""Schedules applied to an optimizer's groups: the weight of the gradient, and the keep probability."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..optim.checks import check_count, check_range
from ..optim.groups import allow_negative_grad_weight
from .base import Schedule, check_finite

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class GroupSchedule(LRScheduler):
    """Base: group[name] = schedule(min(t / total_steps, 1)) in every group, t = 0 at construction.

    A schedule that has ``at_step`` gets the step t + 1 instead of the progress. A group that is added later has the
    value in force from the start, unless it says otherwise itself, and follows with the next step.

    It is an LRScheduler so that Lightning, accelerate and torch's ChainedScheduler take it for what it is to them,
    something that steps with an optimizer and can be saved. None of torch's code that writes learning rates runs in it,
    and it does not note ``initial_lr``, from which later schedulers of rates would begin: SequentialLR, which reads it,
    needs one of these beside it, or groups that have it. There a later schedule's first value is in force from the
    start, unless an earlier one writes the same key.

    Subclasses name the key and its range.
    """

    name: str
    low, high = 0.0, 1.0

    def __init__(self, optimizer: Any, schedule: Schedule | Callable[[float], float], total_steps: int) -> None:
        total_steps = check_count("total_steps", total_steps, 1)
        if not callable(schedule) and not hasattr(schedule, "at_step"):
            raise TypeError(f"Invalid schedule={schedule!r}: must be a function of the progress or have at_step(step)")
        self.optimizer = optimizer
        self.schedule = schedule
        self.total_steps = total_steps
        self.last_step = 0
        self._attached = True
        self._check_optimizer()
        for bound in schedule.bounds() if hasattr(schedule, "bounds") else ():
            self._check(bound)
        self._last_value = self._value(0, total_steps)
        self._check_targets()
        self._attach()
        self._write(self._last_value)

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step; steps are whatever ``total_steps`` counts. Past ``total_steps`` the progress stays at 1.

        Args:
            epoch: the step to go to instead, >= 0, as for torch's schedulers.

        Raises:
            ValueError, TypeError: epoch, or the schedule's value, is out of range; nothing has been changed then.
            RuntimeError: after remove().
        """
        self._check_attached()
        step = self.last_step + 1 if epoch is None else check_count("epoch", epoch, 0)
        self._go_to(step, self.total_steps)

    @property
    def last_epoch(self) -> int:
        """torch's name of ``last_step``."""
        return self.last_step

    @last_epoch.setter
    def last_epoch(self, step: int) -> None:
        self.last_step = step

    @property  # torch has an attribute here: this one is derived, and there is nothing that could be written to it
    def base_lrs(self) -> list[float | Tensor]:  # type: ignore[override]
        """The learning rates at the start, which this leaves alone, as torch's schedulers tell them."""
        return [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups]

    @property  # as base_lrs
    def _step_count(self) -> int:  # type: ignore[override]
        return self.last_step + 1

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates as they are, whoever has written them."""
        return [lr.clone() if isinstance(lr, Tensor) else lr for lr in (g["lr"] for g in self.optimizer.param_groups)]

    def get_last_lr(self) -> list[float | Tensor]:
        """As :meth:`get_lr`; for the value that this writes see :meth:`get_last_value`."""
        return self.get_lr()

    def get_last_value(self) -> float:
        """The value that is in force."""
        return self._last_value

    def remove(self) -> None:
        """Leave the optimizer alone from now on, with the value that does nothing: 1."""
        if self._attached:
            self._last_value = 1.0
            self._write(1.0)
            self._detach()
            self._attached = False

    def state_dict(self) -> dict[str, int]:
        """The step and the number of steps. The schedule is code, and is not in it."""
        return {"last_step": self.last_step, "total_steps": self.total_steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where state_dict() was called, and write that step's value.

        Raises:
            ValueError, TypeError: a number, or the schedule's value there, is out of range; nothing is changed then.
            RuntimeError: after remove().
        """
        self._check_attached()
        last_step = check_count("last_step", state_dict["last_step"], 0)
        self._go_to(last_step, check_count("total_steps", state_dict["total_steps"], 1))

    def _initial_step(self) -> None:
        self._update_lr(0)  # SequentialLR calls these two of the first scheduler, and of the one it hands over to

    def _update_lr(self, epoch: int | None = None) -> None:
        self.step(epoch)

    def _go_to(self, step: int, total_steps: int) -> None:
        value = self._value(step, total_steps)
        self._check_targets()
        self.last_step, self.total_steps, self._last_value = step, total_steps, value
        self._write(value)

    def _value(self, step: int, total_steps: int) -> float:
        at_step = getattr(self.schedule, "at_step", None)
        value = at_step(step + 1) if at_step else self.schedule(min(step / total_steps, 1.0))
        return float(self._check(value))

    def _check(self, value: float) -> float:
        number = check_finite(self.name, value)
        check_range(self.name, number, self.low, self.high)
        return number

    def _check_attached(self) -> None:
        if not self._attached:
            raise RuntimeError(f"This {type(self).__name__} was removed from its optimizer")

    def _check_optimizer(self) -> None:
        if not self._has_key():
            kind = type(self.optimizer).__name__
            raise TypeError(f"Invalid optimizer of type {kind}: its groups have no {self.name}")

    def _has_key(self) -> bool:
        return all(self.name in group for group in getattr(self.optimizer, "param_groups", [{}]))

    def _attach(self) -> None:
        """What has to be done to the optimizer before the first value is written."""

    def _detach(self) -> None:
        """Undo _attach()."""

    def _targets(self) -> list[dict[str, Any]]:
        """The groups, and what groups to come are made of."""
        return [*self.optimizer.param_groups, getattr(self.optimizer, "defaults", {})]

    def _check_targets(self) -> None:
        for group in self._targets():
            value = group.get(self.name)
            if isinstance(value, Tensor) and not value.is_floating_point():
                raise TypeError(f"Invalid {self.name} of dtype {value.dtype}: must be a floating-point one")

    @torch.no_grad()
    def _write(self, value: float) -> None:
        for group in self._targets():
            if isinstance(group.get(self.name), Tensor):
                group[self.name].fill_(value)  # the same tensor: a captured graph reads it
            else:
                group[self.name] = value


class KeepProb(GroupSchedule):
    """keep_prob = schedule(min(t / total_steps, 1)) in every group of one of our optimizers.

    A group's tensor is filled in place, so a captured CUDA graph sees the new value.

    Args:
        optimizer: one of this package's; its groups have ``keep_prob``.
        schedule: a function of the progress with values in [0, 1], e.g. ``linear(start=0.3, end=1.0)``.
        total_steps: the number of ``step()`` calls, >= 1, from progress 0, which is set here, to progress 1.

    Raises:
        ValueError: total_steps < 1, or the schedule is known to leave [0, 1].
        TypeError: the optimizer's groups have no keep_prob, or an argument has the wrong type.
    """

    name = "keep_prob"


class GradientWeight(GroupSchedule):
    r"""Gradient weight ("loss decay"), s(t) = schedule(min(t / total_steps, 1)), as if the loss were s(t) times itself.

    .. math:: g \leftarrow s(t)\,\nabla f(p) \;(+\; \lambda p)

    The weight is on the gradient alone: the learning rate and weight decay are not scaled. ``step()`` after each epoch
    counts epochs from 0 as the authors do; after each batch it counts batches.

    Our optimizers get it as their groups' ``grad_weight``, within the fused step (a tensor is filled in place, so a
    captured CUDA graph sees it). On any other torch optimizer, a step pre-hook multiplies every ``.grad`` in place
    (``torch._foreach_mul_``), so ``.grad`` **is changed by step()**: with ``step(closure)`` after each evaluation of
    the closure, else once per ``step()``. Gradients that are kept over several ``step()`` without zero_grad() would be
    weighted repeatedly. LBFGS gets its closure's loss weighted too, because its line search compares the two.
    In a captured CUDA graph of such an optimizer the weight is the one at capture.
    Clipping before ``step()`` clips the unweighted gradient. Copies of an optimizer lose their hooks, as with torch; a
    pickled or deep-copied GradientWeight brings its copy of the optimizer along, with the hook.

    Source: Wei, Forget the Learning Rate, Decay Loss, 2019 (arXiv 1905.00094), with the weights in
    :mod:`lrtricks_fused.schedules`; random gradient by :class:`lrtricks_fused.schedules.random_gradient`.

    Args:
        optimizer: one of this package's, or any torch.optim.Optimizer.
        schedule: a function of the progress, or an object with ``at_step(step)``, e.g. ``linear(start=2, end=0)``.
        total_steps: the number of ``step()`` calls, >= 1, from progress 0, which is set here, to progress 1.
        allow_negative: accept negative weights, which ascend the loss.

    Raises:
        ValueError: total_steps < 1, or the schedule is known to take a negative or non-finite value.
        TypeError: the optimizer is none, or an argument has the wrong type.
    """

    name = "grad_weight"
    high = math.inf

    def __init__(
        self,
        optimizer: Any,
        schedule: Schedule | Callable[[float], float],
        total_steps: int,
        *,
        allow_negative: bool = False,
    ) -> None:
        self.allow_negative = allow_negative
        self.low = -math.inf if allow_negative else 0.0
        self._hook: Any = None
        super().__init__(optimizer, schedule, total_steps)

    def _check_optimizer(self) -> None:
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            super()._check_optimizer()

    def _attach(self) -> None:
        if not self._has_key():
            self._hook = self.optimizer.register_step_pre_hook(self._before_step)
        elif self.allow_negative:
            allow_negative_grad_weight(self.optimizer, True)

    def _detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        elif self.allow_negative:
            allow_negative_grad_weight(self.optimizer, False)

    def _write(self, value: float) -> None:
        if self._hook is None:  # which reads get_last_value()
            super()._write(value)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        # args[0] is the optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._scale_grads()
            return None
        weighted = self._weighted(closure)
        if len(args) > 1:
            return (args[0], weighted, *args[2:]), kwargs
        return args, {**kwargs, "closure": weighted}

    def _weighted(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure after which the gradients are weighted; for LBFGS its loss is, too."""

        def weighted() -> Any:
            loss = closure()
            self._scale_grads()
            return loss * self._last_value if isinstance(self.optimizer, torch.optim.LBFGS) else loss

        return weighted

    @torch.no_grad()
    def _scale_grads(self) -> None:
        params = (param for group in self.optimizer.param_groups for param in group["params"])
        grads = {id(param.grad): param.grad for param in params if param.grad is not None}  # each tensor once
        if grads and self._last_value != 1:
            torch._foreach_mul_(list(grads.values()), self._last_value)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy keep: all but the hook, of which they keep that there is one."""
        return {**self.__dict__, "_hook": self._hook is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the hook back, onto the copy of the optimizer."""
        self.__dict__.update(state)
        self._hook = self.optimizer.register_step_pre_hook(self._before_step) if state["_hook"] else None
