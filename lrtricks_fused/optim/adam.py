"""Adam and AdamW, with AMSGrad, with learning rate dropout."""

import math
from collections.abc import Iterable

from torch import Tensor
from typing_extensions import Unpack

from .arguments import SharedArguments, with_shared_arguments
from .base import MaskedOptimizer
from .checks import check_range, plain
from .groups import Group, Hyper


class BetaOptimizer(MaskedOptimizer):
    """What optimizers with two averaging coefficients share; most have an eps, too."""

    _has_eps = True

    def _check_rule(self, group: Group) -> None:
        if self._has_eps:
            check_range("eps", group["eps"], 0.0, math.inf)
        betas = group["betas"]
        betas = betas if type(betas) is tuple else plain(betas)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"Invalid betas={betas!r}: must be two floats")
        for i, beta in enumerate(betas):
            check_range(f"betas[{i}]", beta, 0.0, 1.0, "[)")

    def _hyper(self, group: Group) -> Hyper:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        eps = {"eps": float(group["eps"])} if self._has_eps else {}
        return {"beta1": beta1, "beta2": beta2, **eps}


@with_shared_arguments
class Adam(BetaOptimizer):
    r"""Drop-in torch.optim.Adam (AMSGrad included) with learning rate dropout in the fused step.

    .. math::
        g &\leftarrow s\,\nabla f(p) + \lambda p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p_i &\leftarrow p_i - \eta\,\frac{m_i / (1 - \beta_1^t)}{\sqrt{v_i / (1 - \beta_2^t)} + \epsilon}
        \;\text{ where } \mathrm{keep}_i, \quad \mathrm{keep}_i \sim \mathrm{Bernoulli}(\text{keep\_prob})

    Source: Lin et al., Learning Rate Dropout, TNNLS 2022, Algorithm 1, with torch.optim's conventions (epsilon after
    the bias correction). The moments of a dropped element advance, AMSGrad's maximum too.

    Args:
        betas, eps, weight_decay, amsgrad, decoupled_weight_decay: as torch.optim.Adam.
    """

    rule = "adam"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedArguments],
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, foreach=foreach,
            maximize=maximize, capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        super().__init__(params, defaults, **shared)

    def _state_names(self, group: Group) -> dict[str, bool]:
        return {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": group["amsgrad"]}


@with_shared_arguments
class AdamW(Adam):
    """Drop-in torch.optim.AdamW with learning rate dropout: :class:`Adam` with decoupled weight decay.

    The decay is part of the update, eta (direction + lambda p), and dropped with it. Source as :class:`Adam`.

    Args:
        betas, eps, weight_decay, amsgrad: as torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused, decoupled_weight_decay=True, **shared,
        )  # fmt: skip

    def _complete_group(self, saved: Group, current: Group) -> Group:
        # As torch.optim.AdamW: an Adam checkpoint does not turn the decay into a coupled one.
        return {**super()._complete_group(saved, current), "decoupled_weight_decay": True}
