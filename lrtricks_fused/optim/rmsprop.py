"""RMSprop with learning rate dropout."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .base import Group, MaskedOptimizer
from .checks import check_range


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
        params: parameters or groups, as for torch.optim.
        lr: learning rate, >= 0; a float or a tensor of one element.
        alpha, eps, weight_decay, momentum, centered, maximize: as torch.optim.RMSprop.
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

    rule = "rmsprop"
    _optional = frozenset({"grad_avg", "momentum_buffer"})

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
        keep_prob: float | Tensor = 1.0,
        grad_weight: float | Tensor = 1.0,
        centralize: bool = False,
        seed: int = 0,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = dict(
            lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay,
            capturable=capturable, foreach=foreach, maximize=maximize, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        super().__init__(
            params, defaults, keep_prob=keep_prob, grad_weight=grad_weight, centralize=centralize, seed=seed,
            backend=backend, state_dtype=state_dtype,
        )  # fmt: skip

    def _check_rule(self, group: Group) -> None:
        check_range("momentum", group["momentum"], 0.0, math.inf)
        check_range("alpha", group["alpha"], 0.0, 1.0)
        check_range("eps", group["eps"], 0.0, math.inf)

    def _state_names(self, group: Group) -> dict[str, bool]:
        return {"square_avg": True, "grad_avg": group["centered"], "momentum_buffer": group["momentum"] > 0}

    def _hyper(self, group: Group) -> dict[str, float | bool]:
        return {name: float(group[name]) for name in ("alpha", "eps", "momentum")}
