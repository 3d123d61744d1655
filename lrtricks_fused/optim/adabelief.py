"""AdaBelief with learning rate dropout."""

from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from .adam import BetaOptimizer
from .arguments import SharedArguments, with_shared_arguments


@with_shared_arguments
class AdaBelief(BetaOptimizer):
    r"""AdaBelief with learning rate dropout in the fused step.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        s \leftarrow \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon \\
        p_i &\leftarrow p_i - \eta\,\frac{m_i / (1 - \beta_1^t)}{\sqrt{s_i / (1 - \beta_2^t)} + \epsilon}
        \;\text{ where } \mathrm{keep}_i, \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    Source: Zhuang et al., AdaBelief Optimizer, NeurIPS 2020 (arXiv 2010.07468), Algorithm 2, without the rectification
    that the authors' package adds by default; mask after Lin et al., Learning Rate Dropout, TNNLS 2022.

    Args:
        betas: averaging coefficients in [0, 1).
        eps: added inside the average of s and outside its root.
        weight_decay: >= 0; added to the gradient, or to the direction if decoupled_weight_decay.
        decoupled_weight_decay: as in AdamW.
    """

    rule = "adabelief"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
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
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)
