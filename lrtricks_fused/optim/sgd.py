"""SGD with learning rate dropout."""

import math
from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from ..step.operands import is_wrapper
from .arguments import SharedArguments, with_shared_arguments
from .base import MaskedOptimizer
from .checks import check_range
from .groups import Group, Hyper
from .shards import is_dtensor, local


@with_shared_arguments
class SGD(MaskedOptimizer):
    r"""Drop-in torch.optim.SGD with learning rate dropout in the fused step.

    .. math::
        g &\leftarrow s\,\nabla f(p) + \lambda p, \quad
        b \leftarrow \mu b + (1 - \tau) g \quad (b = g \text{ at the first step}) \\
        p_i &\leftarrow p_i - \eta\,b_i \;\text{ where } \mathrm{keep}_i,
        \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    Source: Lin et al., Learning Rate Dropout, TNNLS 2022, Algorithm 1, with torch.optim's conventions. The momentum
    of a dropped element advances; weight decay is part of the update and dropped with it.

    With ``momentum_window=k`` the buffer is replaced by average momentum (Eq. 10), the mean of the last gradients:

    .. math::
        b = \frac{1}{\min(t, k)} \sum_{j=0}^{\min(t, k) - 1} g_{t-j}

    taken anew at every step, so that no error accumulates. It keeps k gradients (state ``window_buffer``, of shape
    (k, \*param.shape)) and reads them all in a step. The window of parameters that have been stepped cannot change.

    Args:
        momentum, dampening, weight_decay, nesterov: as torch.optim.SGD.
        momentum_window: gradients that average momentum averages, >= 1; None for ordinary momentum. Goes with
            momentum, dampening and nesterov at their defaults only.

    Raises:
        ValueError, TypeError: an argument is out of range, or momentum_window differs from that of earlier steps;
            the message names it.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        momentum_window: int | None = None,
        **shared: Unpack[SharedArguments],
    ) -> None:
        defaults = dict(
            lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            maximize=maximize, foreach=foreach, differentiable=differentiable, fused=fused,
            momentum_window=momentum_window,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)

    def _check_rule(self, group: Group) -> None:
        check_range("momentum", group["momentum"], 0.0, math.inf)
        check_range("dampening", group["dampening"], -math.inf, math.inf)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"Invalid nesterov=True with momentum={group['momentum']} and dampening={group['dampening']}: "
                "Nesterov momentum requires a momentum and zero dampening"
            )

        _check_window(group)

    def _rule(self, group: Group) -> str:
        return "sgd" if group["momentum_window"] is None else "average_sgd"

    def _state_names(self, group: Group) -> dict[str, bool]:
        if group["momentum_window"] is not None:
            return {"window_buffer": True}
        return {"momentum_buffer": group["momentum"] != 0}

    def _state_shape(self, group: Group, name: str, param: Tensor) -> tuple[int, ...]:
        if name == "window_buffer" and group["momentum_window"] is not None:
            return (group["momentum_window"], *param.shape)
        return super()._state_shape(group, name, param)

    def _hyper(self, group: Group) -> Hyper:
        if group["momentum_window"] is not None:
            return {"window": group["momentum_window"]}
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        return {"momentum": momentum, "dampening": dampening, "nesterov": bool(group["nesterov"])}

    def _first_hyper(self, group: Group) -> Hyper:
        # As torch.optim: a buffer begins as the undamped gradient, also where momentum is switched on in mid-run.
        hyper = self._hyper(group)
        return {**hyper, "dampening": 0.0} if "dampening" in hyper else hyper

    def _required_states(self, group: Group) -> set[str]:
        # torch.optim saves momentum_buffer=None before it is there.
        return super()._required_states(group) - {"momentum_buffer"}

    def _check_state(self, group: Group, params: list[Tensor]) -> None:
        window = group["momentum_window"]
        if window is None:
            return
        for param in params:
            state = self.state.get(param)
            ring = state.get("window_buffer") if state else None
            if ring is not None and (
                not isinstance(ring, Tensor)
                or is_wrapper(type(local(ring) if is_dtensor(param) else ring))
                or ring.dim() == 0
            ):
                continue  # of no window at all, which is said when the states are looked at
            if state and (ring is None or len(ring) != window):
                before = None if ring is None else len(ring)
                raise ValueError(f"Invalid momentum_window={window}: these parameters have been stepped with "
                                 f"momentum_window={before}")  # fmt: skip


def _check_window(group: Group) -> None:
    window = group["momentum_window"]
    if window is None:
        return
    if not isinstance(window, int) or isinstance(window, bool) or not 1 <= window < 2**63:
        raise ValueError(f"Invalid momentum_window={window!r}: must be an int in [1, 2**63), or None")
    if group["momentum"] != 0 or group["dampening"] != 0 or group["nesterov"]:
        raise ValueError(
            f"Invalid momentum_window={window} with momentum={group['momentum']}, dampening={group['dampening']} and "
            f"nesterov={group['nesterov']}: average momentum replaces them"
        )
