"""AdaBelief with learning rate dropout."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .adam import BetaOptimizer
from .base import Group


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
        params: parameters or groups, as for torch.optim.
        lr: learning rate, >= 0; a float or a tensor of one element.
        betas: averaging coefficients in [0, 1).
        eps: added inside the average of s and outside its root.
        weight_decay: >= 0; added to the gradient, or to the direction if decoupled_weight_decay.
        decoupled_weight_decay: as in AdamW.
        foreach, capturable: accepted; they choose nothing: a step is one, and can be captured, as it is.
        fused: True has torch.amp.GradScaler leave unscaling and skipping to the step, as torch's does; a step is fused
            either way.
        maximize: ascend.
        differentiable: must be False.
        keep_prob: probability in [0, 1] that an element **is** updated (the paper's p); float or 0-dim tensor.
        grad_weight: factor >= 0 on the gradient, applied before weight decay; float or 0-dim tensor.
        centralize: subtract from the gradient of a parameter of several dimensions its mean over all of them but the
            first, before anything else (gradient centralization).
        seed: 64-bit seed of the keep decisions; the same on all replicas.
        backend: "auto", "native", "triton" or "reference".
        state_dtype: dtype of the states of bf16 and fp16 parameters; None is torch.float32.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
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
        keep_prob: float | Tensor = 1.0,
        grad_weight: float | Tensor = 1.0,
        centralize: bool = False,
        seed: int = 0,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        super().__init__(
            params, defaults, keep_prob=keep_prob, grad_weight=grad_weight, centralize=centralize, seed=seed,
            backend=backend, state_dtype=state_dtype,
        )  # fmt: skip

    def _state_names(self, group: Group) -> dict[str, bool]:
        return {"exp_avg": True, "exp_avg_var": True}
