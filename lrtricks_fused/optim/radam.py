"""RAdam with learning rate dropout."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .adam import BetaOptimizer
from .base import Group


class RAdam(BetaOptimizer):
    r"""Drop-in torch.optim.RAdam with learning rate dropout in the fused step, in both branches.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \hat m = m / (1 - \beta_1^t) \\
        p_i &\leftarrow p_i - \eta\,\hat m_i\,r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_i} + \epsilon)
        \;\text{ where } \mathrm{keep}_i \quad (\rho_t > 5) \\
        p_i &\leftarrow p_i - \eta\,\hat m_i \;\text{ where } \mathrm{keep}_i \quad (\rho_t \le 5)

    Source: Liu et al., On the Variance of the Adaptive Learning Rate, ICLR 2020, with torch.optim's conventions;
    mask after Lin et al., Learning Rate Dropout, TNNLS 2022.

    Args:
        params: parameters or groups, as for torch.optim.
        lr: learning rate, >= 0; a float or a tensor of one element.
        betas, eps, weight_decay, decoupled_weight_decay, maximize: as torch.optim.RAdam.
        foreach, capturable: accepted; they choose nothing: a step is one, and can be captured, as it is.
        fused: True has torch.amp.GradScaler leave unscaling and skipping to the step, as torch.optim.Adam's does.
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
        keep_prob: float | Tensor = 1.0,
        grad_weight: float | Tensor = 1.0,
        centralize: bool = False,
        seed: int = 0,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize, foreach=foreach,
            capturable=capturable, decoupled_weight_decay=decoupled_weight_decay, differentiable=differentiable,
            fused=fused,
        )  # fmt: skip
        super().__init__(
            params, defaults, keep_prob=keep_prob, grad_weight=grad_weight, centralize=centralize, seed=seed,
            backend=backend, state_dtype=state_dtype,
        )  # fmt: skip

    def _state_names(self, group: Group) -> dict[str, bool]:
        return {"exp_avg": True, "exp_avg_sq": True}
