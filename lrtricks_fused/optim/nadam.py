"""NAdam with learning rate dropout."""

import math
from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from .adam import BetaOptimizer
from .arguments import SharedArguments, with_shared_arguments
from .checks import check_range
from .groups import Group, Hyper


@with_shared_arguments
class NAdam(BetaOptimizer):
    r"""Drop-in torch.optim.NAdam with learning rate dropout in the fused step.

    .. math::
        \mu_t &= \beta_1 (1 - 0.96^{t \psi} / 2), \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p_i &\leftarrow p_i - \eta\,\frac{\mu_{t+1} m_i / (1 - \prod_{j=1}^{t+1} \mu_j)
        + (1 - \mu_t) g_i / (1 - \prod_{j=1}^{t} \mu_j)}{\sqrt{v_i / (1 - \beta_2^t)} + \epsilon}
        \;\text{ where } \mathrm{keep}_i, \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    The product of the momenta is a state of one number, mu_product (float64 here).

    Source: Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016, with torch.optim's conventions; mask
    after Lin et al., Learning Rate Dropout, TNNLS 2022. The moments of a dropped element advance.

    Args:
        betas, eps, weight_decay, momentum_decay, decoupled_weight_decay: as torch.optim.NAdam.
    """

    rule = "nadam"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **shared: Unpack[SharedArguments],
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay, maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay, foreach=foreach, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)

    def _check_rule(self, group: Group) -> None:
        super()._check_rule(group)
        check_range("momentum_decay", group["momentum_decay"], 0.0, math.inf)

    def _hyper(self, group: Group) -> Hyper:
        # The one power of a fraction: on the host, because it is not the same bits everywhere.
        return {**super()._hyper(group), "decay": 0.96 ** float(group["momentum_decay"])}
