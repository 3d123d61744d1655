"""SGD with learning rate dropout."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .base import Group, MaskedOptimizer
from .checks import check_range


class SGD(MaskedOptimizer):
    r"""Drop-in torch.optim.SGD with learning rate dropout in the fused step.

    .. math::
        g &\leftarrow s\,\nabla f(p) + \lambda p, \quad
        b \leftarrow \mu b + (1 - \tau) g \quad (b = g \text{ at the first step}) \\
        p_i &\leftarrow p_i - \eta\,b_i \;\text{ where } \mathrm{keep}_i,
        \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    Source: Lin et al., Learning Rate Dropout, TNNLS 2022, Algorithm 1, with torch.optim's conventions. The momentum
    of a dropped element advances; weight decay is part of the update and dropped with it.

    Args:
        params: parameters or groups, as for torch.optim.
        lr: learning rate, >= 0; a float or a tensor of one element.
        momentum, dampening, weight_decay, nesterov, maximize: as torch.optim.SGD.
        foreach, fused: accepted; they choose nothing here.
        differentiable: must be False.
        keep_prob: probability in [0, 1] that an element **is** updated (the paper's p); float or 0-dim tensor.
        grad_weight: factor >= 0 on the gradient, applied before weight decay; float or 0-dim tensor.
        seed: 64-bit seed of the keep decisions; the same on all replicas.
        backend: "auto", "native", "triton" or "reference".
        state_dtype: dtype of the states of bf16 and fp16 parameters; None is torch.float32.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """

    rule = "sgd"

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
        keep_prob: float | Tensor = 1.0,
        grad_weight: float | Tensor = 1.0,
        seed: int = 0,
        backend: str = "auto",
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = dict(
            lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            maximize=maximize, foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        super().__init__(
            params, defaults, keep_prob=keep_prob, grad_weight=grad_weight, seed=seed, backend=backend,
            state_dtype=state_dtype,
        )  # fmt: skip

    def _check_rule(self, group: Group) -> None:
        check_range("momentum", group["momentum"], 0.0, math.inf)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"Invalid nesterov=True with momentum={group['momentum']} and dampening={group['dampening']}: "
                "Nesterov momentum requires a momentum and zero dampening"
            )

    def _state_names(self, group: Group) -> dict[str, bool]:
        return {"momentum_buffer": group["momentum"] != 0}

    def _hyper(self, group: Group) -> dict[str, float | bool]:
        return {name: group[name] for name in ("momentum", "dampening", "nesterov")}
