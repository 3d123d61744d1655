"""Who steps a row: torch.optim's implementations, the paper's recipe, and ours on both backends."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import candidates
from ..candidates import RULES, OptimizerStep, Step, centralize_gradients, optimizer_of, recipe
from ..sixteen_bits import between_casts, mirror_of
from .rows import (
    CENTRALIZE,
    CHANGES,
    CLIP,
    MIRROR,
    PLAIN,
    SLOPE,
    SPLIT,
    STOCHASTIC,
    STOCHASTIC_BOTH,
    STOCHASTIC_STATES,
    Row,
    Trick,
)

BACKENDS = {"native": "native", "triton": "Triton"}  # as the optimizers have them, as a table has them
COMPILE_SECONDS = 90.0
ROUNDING, STATE_ROUNDING = {"rounding": "stochastic"}, {"state_rounding": "stochastic"}
OPTIONS: dict[Trick, dict[str, object]] = {
    CENTRALIZE: {"centralize": True},
    CLIP: {"max_norm": 1.0},
    STOCHASTIC: {**ROUNDING},
    STOCHASTIC_STATES: {**STATE_ROUNDING},
    STOCHASTIC_BOTH: {**ROUNDING, **STATE_ROUNDING},
    SPLIT: {"master": "split"},
    CHANGES: {"track_changes": True},
}
BY_HAND: dict[Trick, Callable[[list[Tensor]], object]] = {
    CENTRALIZE: centralize_gradients,
    CLIP: lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0),
}


@dataclass(frozen=True)
class Ours:
    """Our optimizer on one backend; ``trick``: that of the row, or none, to be compared with."""

    row: Row
    backend: str
    keep_prob: float
    trick: Trick = PLAIN

    @property
    def name(self) -> str:
        """As a table has it."""
        tricks = f", {self.trick.name}" if self.trick != PLAIN else ""
        return f"ours, {BACKENDS.get(self.backend, self.backend)}, keep {self.keep_prob:g}{tricks}"

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the states that it reads and writes."""
        return self.row.state_dtype

    def build(self, params: list[Tensor]) -> Step:
        """A step over these parameters, on whatever device they are."""
        of_16_bits = 2 in (self.row.work.dtype.itemsize, self.row.state_dtype.itemsize)
        optimizer = optimizer_of(
            self.row.rule, params, backend=self.backend, keep_prob=self.keep_prob, **OPTIONS.get(self.trick, {}),
            state_dtype=self.row.state_dtype if of_16_bits else None,
        )  # fmt: skip
        for param in params if self.trick == MIRROR else ():
            optimizer.mirror(param, mirror_of(param))
        if self.trick != SLOPE:
            return OptimizerStep(optimizer)
        slopes: dict[torch.device, Tensor] = {}

        def step() -> None:
            with optimizer.add_slopes_to(slopes):
                optimizer.step()

        return OptimizerStep(optimizer, step)


@dataclass(frozen=True)
class Peer:
    """Somebody else's step; it has ``seconds`` for its warm-up, in which it may be compiled."""

    name: str
    build: Callable[[list[Tensor]], Step]
    state_dtype: torch.dtype
    trick: Trick = PLAIN
    seconds: float | None = None


Candidate = Ours | Peer


def _accepts(rule: str, argument: str) -> bool:
    return argument in inspect.signature(getattr(torch.optim, RULES[rule].class_name)).parameters


def _capturable(row: Row) -> dict[str, object]:
    """What lets torch's optimizers be captured in a graph."""
    return {"capturable": True} if row.graph and _accepts(row.rule, "capturable") else {}


def _torch(row: Row, implementation: str) -> Peer:
    of = candidates.torch_optim(row.rule, implementation, **_capturable(row))
    return Peer(of.name, of.build, row.work.dtype)


def _compiled(row: Row) -> Peer:
    """torch.optim's class, its step compiled."""
    capturable: dict[str, object] = {"capturable": True} if _accepts(row.rule, "capturable") else {}

    def build(params: list[Tensor]) -> Step:
        lr = torch.tensor(1e-3, device=params[0].device)
        of = candidates.torch_optim(row.rule, "foreach", lr=lr, **capturable).build(params)
        assert isinstance(of, OptimizerStep)
        return torch.compile(lambda: of.optimizer.step(), fullgraph=False)

    return Peer("torch compiled", build, row.work.dtype, seconds=COMPILE_SECONDS)


def _recipe(row: Row) -> Peer:
    of = recipe()
    return Peer(of.name, of.build, row.work.dtype)


def _casts(row: Row) -> Peer:
    """A copy of the gradients to fp32, torch's step, and a copy of the parameters to bf16."""
    of = between_casts(candidates.torch_optim(row.rule, "fused"))
    return Peer(of.name, of.build, row.work.dtype)


def _by_hand(row: Row) -> Peer:
    """The row's trick in tensor operations before torch's step; gradients are changed in place, as it is done."""
    prepare, fused = BY_HAND[row.trick], candidates.torch_optim(row.rule, "fused")

    def build(params: list[Tensor]) -> Step:
        step = fused.build(params)
        assert isinstance(step, OptimizerStep)

        def whole() -> None:
            prepare(params)
            step.optimizer.step()

        return OptimizerStep(step.optimizer, whole)

    return Peer(f"torch fused, {row.trick.name} by hand", build, row.work.dtype, row.trick)


PEERS: dict[str, Callable[[Row], Peer]] = {
    "fused": lambda row: _torch(row, "fused"),
    "foreach": lambda row: _torch(row, "foreach"),
    "compiled": _compiled,
    "recipe": _recipe,
    "by hand": _by_hand,
    "casts": _casts,
}


def baseline(row: Row) -> str:
    """The candidate that the others are compared with."""
    return PEERS[row.peers[0]](row).name


def ours_of(row: Row, backends: tuple[str, ...]) -> list[Ours]:
    """Ours, in the order of the table."""
    tricks = dict.fromkeys((PLAIN, row.trick))
    return [Ours(row, name, keep, trick) for name in backends for keep in row.keep_probs for trick in tricks]


def all_candidates(row: Row, backends: tuple[str, ...], with_compiled: bool) -> list[Candidate]:
    """All of a row, in the order of the table."""
    names = [name for name in row.peers if with_compiled or name != "compiled"]
    return [*(PEERS[name](row) for name in names), *ours_of(row, backends)]
