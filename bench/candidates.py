"""Named ways to take one optimizer step: torch.optim's, ours, and the paper's recipe in tensor operations.

A candidate binds parameters (which carry gradients) to a function that takes one whole step.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import lrtricks_fused
from lrtricks_fused.optim.base import MaskedOptimizer

from .workloads import gradient

Step = Callable[[], object]
KEEP_PROB = 0.5


@dataclass(frozen=True)
class OptimizerStep:
    """A step of an optimizer, which whoever times it can ask for; ``whole``: what is taken besides it, and it."""

    optimizer: torch.optim.Optimizer
    whole: Step | None = None

    def __call__(self) -> object:
        """One whole step."""
        return self.whole() if self.whole else self.optimizer.step()


@dataclass(frozen=True)
class Rule:
    """The class name that torch.optim and lrtricks_fused share, and how many states a parameter has."""

    class_name: str
    states: int
    options: dict[str, object] = field(default_factory=dict)

    def traffic_bytes(self, dtype: torch.dtype, state_dtype: torch.dtype, grad_dtype: torch.dtype | None = None) -> int:
        """Least bytes per parameter of a fused step: parameter and states read and written, gradient read."""
        return 2 * dtype.itemsize + (grad_dtype or dtype).itemsize + 2 * state_dtype.itemsize * self.states


RULES = {
    "Adam": Rule("Adam", 2),
    "AdamW": Rule("AdamW", 2),
    "AMSGrad": Rule("Adam", 3, {"amsgrad": True}),
    "SGD+momentum": Rule("SGD", 1, {"momentum": 0.9}),
    "RMSprop": Rule("RMSprop", 1),
    "RAdam": Rule("RAdam", 2),
    "AdaBelief": Rule("AdaBelief", 2),
}


@dataclass(frozen=True)
class Candidate:
    """A named builder of a step.

    Attributes:
        name: as bars have it.
        build: of parameters, which carry gradients.
        isa: the value of LRTRICKS_CPU_ISA while it runs, "" for the best.
        state_dtype: of the states; None: the parameters'.
        more: bytes that it moves per parameter beyond those of the rule.
    """

    name: str
    build: Callable[[list[Tensor]], Step]
    isa: str = ""
    state_dtype: torch.dtype | None = None
    more: float = 0.0


def torch_optim(rule: str, implementation: str, **arguments: object) -> Candidate:
    """torch.optim's class without a mask; ``implementation`` is "fused" or "foreach"."""
    spec = RULES[rule]

    def build(params: list[Tensor]) -> Step:
        optimizer = getattr(torch.optim, spec.class_name)
        return OptimizerStep(optimizer(params, **{"lr": 1e-3, implementation: True, **spec.options, **arguments}))

    return Candidate(f"torch {implementation}", build)


def optimizer_of(rule: str, params: list[Tensor], **arguments: Any) -> MaskedOptimizer:
    """The class of lrtricks_fused, masked, on the native backend unless the arguments say otherwise."""
    spec = RULES[rule]
    own = {"lr": 1e-3, "keep_prob": KEEP_PROB, "backend": "native", **spec.options, **arguments}
    return getattr(lrtricks_fused, spec.class_name)(params, **own)


def ours(
    rule: str, *, isa: str = "", state_dtype: torch.dtype | None = None, more: float = 0.0, **arguments: Any
) -> Candidate:
    """The class of lrtricks_fused, masked, on the native backend."""
    of_dtype = f", {str(state_dtype).removeprefix('torch.')} states" if state_dtype else ""
    others = "".join(f", {name}={value}" for name, value in arguments.items())
    name = f"ours{' ' + isa if isa else ''}{of_dtype}{others}"

    def build(params: list[Tensor]) -> Step:
        return OptimizerStep(optimizer_of(rule, params, state_dtype=state_dtype, **arguments))

    return Candidate(name, build, isa, state_dtype, more)


def centralize_gradients(params: list[Tensor]) -> None:
    """Gradient centralization in tensor operations, tensor after tensor, as its authors' code."""
    for param in params:
        if param.dim() > 1:
            grad = gradient(param)
            grad.sub_(grad.mean(dim=tuple(range(1, param.dim())), keepdim=True))


def centralized_by_hand(rule: str) -> Candidate:
    """Ours after gradient centralization in tensor operations."""

    def build(params: list[Tensor]) -> Step:
        optimizer = optimizer_of(rule, params)

        def step() -> None:
            centralize_gradients(params)
            optimizer.step()

        return OptimizerStep(optimizer, step)

    return Candidate("ours after centralization by hand", build)


def clipped_by_hand(rule: str) -> Candidate:
    """Ours after torch's own clipping."""

    def build(params: list[Tensor]) -> Step:
        optimizer = optimizer_of(rule, params)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()

        return OptimizerStep(optimizer, step)

    return Candidate("ours after clip_grad_norm_", build)


def lossgrad(rule: str) -> Candidate:
    """Ours inside LossGrad: a step with its slope and the new step size, without the evaluations of the loss."""

    def build(params: list[Tensor]) -> Step:
        tuned = lrtricks_fused.LossGrad(optimizer_of(rule, params))
        tuned._place_lr()
        losses = torch.ones(()), torch.zeros(())

        def step() -> None:
            tuned._step()
            tuned._adapt(*losses)

        return OptimizerStep(tuned.optimizer, step)

    return Candidate("ours in LossGrad", build)


def recipe_update(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step_size: float | Tensor, keep_prob: float
) -> None:
    """Adam with learning rate dropout, statement by statement as the authors' adam_lrd (defaults, no decay)."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    mask = torch.bernoulli(torch.full_like(param, keep_prob))
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denom = exp_avg_sq.sqrt().add_(eps)
    param.addcmul_(exp_avg, step_size / denom * mask, value=-1)


def recipe(*, compiled: bool = False) -> Candidate:
    """The paper's recipe, tensor after tensor; ``compiled`` hands the update of one tensor to torch.compile."""

    def build(params: list[Tensor]) -> Step:
        update = torch.compile(recipe_update) if compiled else recipe_update
        states = [(torch.zeros_like(param), torch.zeros_like(param)) for param in params]
        steps = 0

        @torch.no_grad()
        def step() -> None:
            nonlocal steps
            steps += 1
            step_size = 1e-3 * math.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
            for param, state in zip(params, states, strict=True):
                # As a tensor, or every step would be compiled anew.
                update(param, gradient(param), *state, torch.tensor(step_size) if compiled else step_size, KEEP_PROB)

        return step

    return Candidate("compiled recipe" if compiled else "paper recipe", build)


def deepspeed(*, adamw: bool = False) -> Candidate | None:
    """DeepSpeed's CPUAdam without a mask, where it is installed (its extension is compiled at first use); else None.

    ``adamw``: as AdamW, with the weight decay that the others have.
    """
    if importlib.util.find_spec("deepspeed") is None:
        return None

    def build(params: list[Tensor]) -> Step:
        adam = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
        return OptimizerStep(adam(params, lr=1e-3, adamw_mode=adamw, weight_decay=0.01 * adamw))

    return Candidate("DeepSpeed CPUAdam", build)


def copy() -> Candidate:
    """A copy of one flat tensor as large as all parameters: what this machine's memory gives a torch operation."""

    def build(params: list[Tensor]) -> Step:
        source = torch.cat([param.detach().flatten() for param in params])
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return Candidate("copy", build)
