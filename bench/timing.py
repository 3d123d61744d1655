"""Interleaved timing: one round runs every candidate once, so that a busy moment slows them alike.

Ratios are taken round by round; their median and quartiles are what a report shows.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import Tensor

from .candidates import Candidate, OptimizerStep, Step
from .workloads import Workload, clone_parameters

ISA_VARIABLE = "LRTRICKS_CPU_ISA"
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """How often to time: fresh allocations (pages differ in luck), and rounds in each.

    Past ``seconds`` no further allocation or round begins, but a few rounds are always timed.
    RAdam changes its branch at step 6: warm it up as long.
    """

    allocations: int = 4
    rounds: int = 20
    warm_up: int = 6
    seconds: float = 20.0


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of one or more numbers."""
        q1, _, q3 = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median(values), q1, q3)

    def text(self, digits: int = 3) -> str:
        """As "median [q1-q3]"."""
        return f"{self.median:.{digits}f} [{self.q1:.{digits}f}-{self.q3:.{digits}f}]"


@dataclass
class Timings:
    """Seconds of one step per candidate, one entry per round: entry i of all lists is the same round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def step(self, name: str) -> Spread:
        """Seconds per step."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, baseline: str) -> Spread:
        """Time of ``name`` over time of ``baseline``, round by round."""
        return Spread.of([a / b for a, b in zip(self.seconds[name], self.seconds[baseline], strict=True)])


@contextmanager
def forced_isa(isa: str) -> Iterator[None]:
    """Sets the variable that the native library reads at every call; "" leaves it as it is."""
    if not isa:
        yield
        return
    before = os.environ.get(ISA_VARIABLE)
    os.environ[ISA_VARIABLE] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ[ISA_VARIABLE]
        else:
            os.environ[ISA_VARIABLE] = before


def last_level_cache_bytes() -> int:
    """Size of the largest cache that Linux reports, 32 MiB where it reports none."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().strip().removesuffix("K")) * 1024 for size in sizes), default=32 * 2**20)


def cache_flusher(workload: Workload) -> Callable[[], object]:
    """What to run before a timed step: overwrites the caches, or nothing where the workload itself exceeds them."""
    cache = last_level_cache_bytes()
    if 3 * workload.numel * workload.dtype.itemsize > 2 * cache:  # parameters, gradients and one state
        return lambda: None
    return torch.empty(4 * cache, dtype=torch.uint8).zero_


def time_step(step: Step, isa: str, flush: Callable[[], object]) -> float:
    """Seconds of one step."""
    with forced_isa(isa):
        flush()
        start = perf_counter()
        step()
        return perf_counter() - start


class StatePool:
    """The memory of the states: that of the first optimizer which has such a state of a parameter, for all.

    Where memory lies decides on some 10 % of a step, and not the same for two optimizers with tensors of their own.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def share(self, step: Step) -> None:
        """Gives the optimizer of a step, if it has one, the pool's states in the place of its own."""
        if not isinstance(step, OptimizerStep):
            return
        params = [param for group in step.optimizer.param_groups for param in group["params"]]
        for place, param in enumerate(params):  # not which tensor it is: some candidates step twins of the parameters
            states = step.optimizer.state.get(param, {})
            alike = [name for name, state in states.items() if torch.is_tensor(state) and state.shape == param.shape]
            for number, name in enumerate(alike if param.dim() else []):
                states[name] = self._states.setdefault((place, number, states[name].dtype), states[name])


def time_candidates(
    workload: Workload, candidates: list[Candidate], effort: Effort, on_round: Callable[[], object] = lambda: None
) -> Timings:
    """Time whole steps of all candidates, interleaved in rotating order, over the same parameters and states."""
    timings = Timings({candidate.name: [] for candidate in candidates})
    flush, source = cache_flusher(workload), workload.parameters()
    end = perf_counter() + effort.seconds
    for allocation in range(effort.allocations):
        if allocation > 0 and perf_counter() > end:
            break
        params, pool = clone_parameters(source), StatePool()
        steps = [(candidate, candidate.build(params)) for candidate in candidates]
        for candidate, step in steps:
            for _ in range(effort.warm_up):
                time_step(step, candidate.isa, lambda: None)
                pool.share(step)
        gc.collect()
        gc.disable()
        for round_ in range(effort.rounds):
            first = (allocation + round_) % len(steps)
            for candidate, step in steps[first:] + steps[:first]:
                workload.before_step(params)
                timings.seconds[candidate.name].append(time_step(step, candidate.isa, flush))
            on_round()
            if round_ + 1 >= LEAST_ROUNDS and perf_counter() > end:
                break
        gc.enable()
    return timings
