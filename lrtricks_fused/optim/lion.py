"""Lion with learning rate dropout."""

from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from .adam import BetaOptimizer
from .arguments import SharedArguments, with_shared_arguments


@with_shared_arguments
class Lion(BetaOptimizer):
    r"""Lion with learning rate dropout in the fused step.

    .. math::
        u &\leftarrow \mathrm{sign}(\beta_1 m + (1 - \beta_1) g), \quad m \leftarrow \beta_2 m + (1 - \beta_2) g \\
        p_i &\leftarrow p_i - \eta\,(u_i + \lambda p_i)
        \;\text{ where } \mathrm{keep}_i, \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023 (arXiv 2302.06675), Algorithm 2;
    mask after Lin et al., Learning Rate Dropout, TNNLS 2022. The momentum of a dropped element advances.

    Args:
        betas: coefficients in [0, 1) of the update's interpolation and of the momentum.
        weight_decay: >= 0; decoupled: part of the update, and dropped with it.
    """

    rule = "lion"
    _has_eps = False

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **shared: Unpack[SharedArguments],
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, weight_decay=weight_decay, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused, decoupled_weight_decay=True,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)
