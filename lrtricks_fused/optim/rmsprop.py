"""RMSprop with learning rate dropout."""

import math
from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from .arguments import SharedArguments, with_shared_arguments
from .base import MaskedOptimizer
from .checks import check_range
from .groups import Group, Hyper


@with_shared_arguments
class RMSprop(MaskedOptimizer):
    r"""Drop-in torch.optim.RMSprop with learning rate dropout in the fused step.

    .. math::
        g &\leftarrow s\,\nabla f(p) + \lambda p, \quad v \leftarrow \alpha v + (1 - \alpha) g^2, \quad
        a \leftarrow \alpha a + (1 - \alpha) g \\
        b &\leftarrow \mu b + g / (\sqrt{v - a^2 [\text{centered}]} + \epsilon) \\
        p_i &\leftarrow p_i - \eta\,b_i \;\text{ where } \mathrm{keep}_i,
        \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    Source: Lin et al., Learning Rate Dropout, TNNLS 2022, Algorithm 1, with torch.optim's conventions (epsilon outside
    the root; with momentum the mask is on eta b). Unlike the authors' code, weight decay is in the step.

    Args:
        alpha, eps, weight_decay, momentum, centered: as torch.optim.RMSprop.
    """

    rule = "rmsprop"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        **shared: Unpack[SharedArguments],
    ) -> None:
        defaults = dict(
            lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay,
            capturable=capturable, foreach=foreach, maximize=maximize, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)

    def _check_rule(self, group: Group) -> None:
        check_range("momentum", group["momentum"], 0.0, math.inf)
        check_range("alpha", group["alpha"], 0.0, 1.0)
        check_range("eps", group["eps"], 0.0, math.inf)

    def _state_names(self, group: Group) -> dict[str, bool]:
        return {"square_avg": True, "grad_avg": group["centered"], "momentum_buffer": group["momentum"] > 0}

    def _hyper(self, group: Group) -> Hyper:
        return {name: float(group[name]) for name in ("alpha", "eps", "momentum")}
