"""WNGrad and L4, the step-size rules that LOSSGRAD is compared with: plain tensor operations, at reference speed.

They stand beside the fused optimizers and share only the checks of arguments with them.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..optim.checks import check_range, check_real, plain
from ..optim.shards import is_dtensor
from ..step.operands import check_grad, check_param, waited

Group = dict[str, Any]


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"Invalid {name}={value}: must be > 0")


def _make_plain(group: Group, names: Iterable[str]) -> None:
    """Numbers of other libraries' types become Python's, which a checkpoint can hold; tensors stay."""
    for name in group.keys() & set(names):
        value = group[name] if isinstance(group[name], Tensor) else plain(group[name])
        if isinstance(value, (list, tuple)):
            group[name] = tuple(check_real(name, part) for part in value)
        elif not isinstance(value, Tensor):
            group[name] = check_real(name, value)


class _Baseline(torch.optim.Optimizer):
    """A rule with scalars that belong to no parameter: they are kept with the first one's state, as in LBFGS."""

    _one_for_all: tuple[str, ...] = ()  # hyper-parameters of those scalars: a group cannot have its own

    def __init__(self, params: Iterable, defaults: Group) -> None:
        _make_plain(defaults, defaults)
        self._check(defaults)
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch.optim does."""
        if isinstance(param_group, dict):
            _make_plain(param_group, self.defaults)
            self._check({**self.defaults, **param_group})
            for name in self._one_for_all:
                if param_group.get(name, self.defaults[name]) != self.defaults[name]:
                    raise ValueError(f"Invalid {name}={param_group[name]} of a group: it is one for all groups")
        super().add_param_group(param_group)

    def _first(self) -> Tensor:
        return next(param for group in self.param_groups for param in group["params"])

    def _grads(self) -> list[tuple[Group, Tensor, Tensor]]:
        """(group, parameter, gradient + weight_decay * parameter) of every parameter that has a gradient."""
        work = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, param in work:
            if is_dtensor(param):
                raise TypeError(f"Invalid parameter of type DTensor: must be a plain tensor for {type(self).__name__}")
            check_param(param)
            check_grad(param, waited(param.grad))
        return [(group, param, param.grad.add(param, alpha=group["weight_decay"])) for group, param in work]


class WNGrad(_Baseline):
    r"""Gradient descent whose step size falls with the squared gradient norms seen.

    .. math::
        w_{j+1} = w_j - \frac{\eta}{b_j} g_j, \qquad b_{j+1} = b_j + \frac{\lVert g_{j+1} \rVert^2}{b_j},
        \qquad g = \nabla f(w) + \lambda w

    Source: Wu, Ward, Bottou, WNGrad: Learn the Learning Rate in Gradient Descent, arXiv:1803.02865, in the order of
    its algorithm: the first step divides by b0, every later one by a b that has seen its own gradient. b is one
    number for all parameters and all groups, kept in float64. It never falls, so eta / b never rises. The paper has
    eta = 1; where LOSSGRAD's paper names an initial learning rate h0 of WNGrad, take b0 = 1 / h0.

    A step whose squared norm is not finite is left out: b would never come back from it.

    Args:
        params: parameters or groups, as for torch.optim.
        lr: eta >= 0; may differ between groups and follow a scheduler.
        b0: divisor of the first step, > 0.
        weight_decay: lambda >= 0, coupled.

    Raises:
        ValueError, TypeError: an argument is out of range, a gradient is sparse, or a parameter is a DTensor; the
            message names it.
    """

    _one_for_all = ("b0",)

    def __init__(self, params: Iterable, lr: float | Tensor = 1.0, b0: float = 1.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, b0=b0, weight_decay=weight_decay))

    def _check(self, group: Group) -> None:
        check_range("lr", group["lr"], 0.0, math.inf)
        _check_positive("b0", group["b0"])
        check_range("weight_decay", group["weight_decay"], 0.0, math.inf)

    @property
    def b(self) -> float:
        """The divisor of the last step; b0 before the first."""
        return self.state.get(self._first(), {}).get("b", self.param_groups[0]["b0"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = self._grads()
        square = sum(float(g.double().square().sum()) for _, _, g in work)
        if not work or not math.isfinite(square):
            return loss
        scalars = self.state[self._first()]
        scalars["b"] = float(self.b + square / self.b if "b" in scalars else self.b)
        for group, param, g in work:
            param.add_(g, alpha=-float(group["lr"]) / scalars["b"])
        return loss


class _L4(_Baseline):
    """The step size of L4 along a direction that the subclass gives."""

    _one_for_all = ("alpha", "gamma", "init_factor", "tau")

    def _check(self, group: Group) -> None:
        _check_positive("alpha", group["alpha"])
        check_range("gamma", group["gamma"], 0.0, 1.0)
        check_range("init_factor", group["init_factor"], 0.0, 1.0)
        _check_positive("tau", group["tau"])
        check_range("weight_decay", group["weight_decay"], 0.0, math.inf)

    def _advance(self, group: Group, param: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Advances the parameter's averages; returns the gradient's estimate and the direction."""
        raise NotImplementedError

    def _average(self, param: Tensor, name: str, value: Tensor, beta: float) -> Tensor:
        """Exponential moving average of ``value``, divided by the sum of its weights."""
        state = self.state[param]
        if name not in state:
            state[name] = torch.zeros_like(param)
        average = state[name].mul_(beta).add_(value, alpha=1 - beta)
        return average / (1 - beta ** state["step"])

    @property
    def step_size(self) -> float | None:
        """Eta of the last step; None before the first."""
        return self.state.get(self._first(), {}).get("step_size")

    @property
    def min_loss(self) -> float | None:
        """Lmin, as the next step will compare it with its loss; None before the first step."""
        return self.state.get(self._first(), {}).get("min_loss")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. A non-finite loss changes nothing.

        Args:
            closure: clears the gradients, calls backward and returns the loss, as for torch.optim.LBFGS.

        Raises:
            TypeError: there is no closure, or a parameter is a DTensor.
            ValueError: the loss is negative, or a gradient is sparse; nothing has been changed then.
        """
        if closure is None:
            raise TypeError("Invalid closure=None: L4's step size is computed from the loss")
        with torch.enable_grad():
            loss = closure()
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if not math.isfinite(value):
            return loss
        if value < 0:
            raise ValueError(f"Invalid loss={value}: must be >= 0, or L4's step would go uphill")
        work = self._grads()
        if work:
            self._update(work, value)
        return loss

    def _update(self, work: list[tuple[Group, Tensor, Tensor]], loss: float) -> None:
        derivative, directions = 0.0, []
        for group, param, g in work:
            state = self.state[param]
            state["step"] = state.get("step", 0) + 1
            estimate, direction = self._advance(group, param, g)
            derivative += float((estimate.double() * direction.double()).sum())
            directions.append(direction)
        alpha, gamma, init_factor, tau = (float(self.param_groups[0][name]) for name in self._one_for_all)
        min_loss = init_factor * loss if self.min_loss is None else min(self.min_loss, loss)
        step_size = alpha * (loss - gamma * min_loss) / (derivative + 1e-12)
        for (_, param, _), direction in zip(work, directions, strict=True):
            param.add_(direction, alpha=-step_size)
        self.state[self._first()].update(min_loss=(1 + 1 / tau) * min_loss, step_size=step_size)


class L4Mom(_L4):
    r"""Momentum whose step size goes a fixed fraction of the way to a loss believed reachable.

    .. math::
        L_{\min} &\leftarrow \min(L_{\min}, f) \quad (\text{init\_factor} \cdot f \text{ at the first step}) \\
        v &= \hat g = \mathrm{EMA}_\beta(g) / (1 - \beta^t), \quad g = \nabla f(w) + \lambda w \\
        \eta &= \frac{\alpha (f - \gamma L_{\min})}{\langle \hat g, v \rangle + 10^{-12}}, \quad
        w \leftarrow w - \eta v, \quad L_{\min} \leftarrow (1 + 1 / \tau) L_{\min}

    Source: Rolinek, Martius, L4: Practical loss-based stepsize adaptation for deep learning, NeurIPS 2018,
    arXiv:1802.05074, in the order of the authors' code. f is the loss as the closure returns it, without the weight
    decay; Lmin is one number for all parameters, kept in float64. t counts a parameter's own updates.

    Args:
        params: parameters or groups, as for torch.optim.
        alpha: fraction of the way to gamma * Lmin on the linearised loss, > 0.
        gamma: share of Lmin believed reachable, in [0, 1].
        init_factor: Lmin of the first step as a share of its loss, in [0, 1].
        tau: number of steps in which Lmin is forgotten, > 0; may be infinite.
        beta: decay of the gradient's average, in [0, 1); may differ between groups.
        weight_decay: lambda >= 0, coupled; may differ between groups.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        params: Iterable,
        alpha: float = 0.15,
        gamma: float = 0.9,
        init_factor: float = 0.75,
        tau: float = 1000.0,
        beta: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            dict(alpha=alpha, gamma=gamma, init_factor=init_factor, tau=tau, beta=beta, weight_decay=weight_decay),
        )

    def _check(self, group: Group) -> None:
        super()._check(group)
        check_range("beta", group["beta"], 0.0, 1.0, "[)")

    def _advance(self, group: Group, param: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        estimate = self._average(param, "exp_avg", g, group["beta"])
        return estimate, estimate


class L4Adam(_L4):
    r"""L4's step size along Adam's direction.

    .. math::
        v = \frac{\hat g}{\sqrt{\mathrm{EMA}_{\beta_2}(g^2) / (1 - \beta_2^t)} + \epsilon}, \quad
        \hat g = \mathrm{EMA}_{\beta_1}(g) / (1 - \beta_1^t), \quad g = \nabla f(w) + \lambda w

    and the rest as L4Mom, where source and the other arguments are described.

    Args:
        params: parameters or groups, as for torch.optim.
        alpha, gamma, init_factor, tau, weight_decay: as L4Mom.
        betas: decays of the averages of gradient and squared gradient, in [0, 1); may differ between groups.
        eps: added to the root, >= 0; 1e-4 in the authors' code. May differ between groups.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        params: Iterable,
        alpha: float = 0.15,
        gamma: float = 0.9,
        init_factor: float = 0.75,
        tau: float = 1000.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = dict(
            alpha=alpha, gamma=gamma, init_factor=init_factor, tau=tau, betas=betas, eps=eps, weight_decay=weight_decay,
        )  # fmt: skip
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        super()._check(group)
        for index, beta in enumerate(group["betas"], start=1):
            check_range(f"beta{index}", beta, 0.0, 1.0, "[)")
        check_range("eps", group["eps"], 0.0, math.inf)

    def _advance(self, group: Group, param: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        beta1, beta2 = group["betas"]
        estimate = self._average(param, "exp_avg", g, beta1)
        square = self._average(param, "exp_avg_sq", g.square(), beta2)
        return estimate, estimate / (square.sqrt() + group["eps"])
