"""RAdam with learning rate dropout."""

from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from .adam import BetaOptimizer
from .arguments import SharedArguments, with_shared_arguments


@with_shared_arguments
class RAdam(BetaOptimizer):
    r"""Drop-in torch.optim.RAdam with learning rate dropout in the fused step, in both branches.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \hat m = m / (1 - \beta_1^t) \\
        p_i &\leftarrow p_i - \eta\,\hat m_i\,r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_i} + \epsilon)
        \;\text{ where } \mathrm{keep}_i \quad (\rho_t > 5) \\
        p_i &\leftarrow p_i - \eta\,\hat m_i \;\text{ where } \mathrm{keep}_i \quad (\rho_t \le 5) \\
        \rho_t &= \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t), \quad \rho_\infty = 2 / (1 - \beta_2) - 1, \quad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}}

    Source: Liu et al., On the Variance of the Adaptive Learning Rate, ICLR 2020, with torch.optim's conventions;
    mask after Lin et al., Learning Rate Dropout, TNNLS 2022.

    Args:
        betas, eps, weight_decay, decoupled_weight_decay: as torch.optim.RAdam.
    """

    rule = "radam"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize, foreach=foreach,
            capturable=capturable, decoupled_weight_decay=decoupled_weight_decay, differentiable=differentiable,
            fused=fused,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)
