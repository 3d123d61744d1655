"""One row measured: every candidate checked or warmed up, then timed interleaved with the others."""

import gc
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..candidates import Step
from ..timing import Effort, Spread, StatePool, Timings
from .candidates import BACKENDS, Candidate, Ours, all_candidates, baseline, ours_of
from .check import difference
from .device import Device, copy_step
from .rows import Row, small
from .work import Work

COPY = "copy"
FULL, QUICK, DRY = Effort(1, 60, 10, 4.0), Effort(1, 10, 8, 2.0), Effort(1, 3, 2, 5.0)


@dataclass(frozen=True)
class Settings:
    """What a run was told, for whoever measures its rows."""

    device: str = "cuda"
    backends: tuple[str, ...] = tuple(BACKENDS)
    effort: Effort = FULL
    with_compiled: bool = True
    dry_run: bool = False


@dataclass(frozen=True)
class Timed:
    """What one candidate took, in seconds, beside the baseline and a copy of as many bytes, round by round."""

    device: Spread
    host: Spread
    ratio: Spread | None  # to the baseline
    moved: int  # the least bytes that such a step can move
    of_copy: Spread  # its bytes per second over those of the copy
    samples: list[float]

    @property
    def bandwidth(self) -> float:
        """Bytes per second, as the median has it."""
        return self.moved / self.device.median


@dataclass
class Result:
    """Of a row: what was timed, and what is missing, with the reason, of ours and of the others."""

    name: str
    baseline: str
    timed: dict[str, Timed] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed_peers: dict[str, str] = field(default_factory=dict)
    left_out: str = ""  # why nothing was tried
    began: float = 0.0  # of the timed rounds, as time.time() tells it
    ended: float = 0.0
    lost: bool = False  # whether the device cannot be used any more by the process that measured

    def lose(self, row: Row, settings: Settings, reason: str) -> None:
        """Nothing was timed: all of ours are missing, those without a reason of their own for this one."""
        self.missing = {one.name: reason for one in ours_of(row, settings.backends)} | self.missing


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in the middle of what takes longer; only in a process's main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not ready after {seconds:g} s")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Warm:
    """The steps of a row's candidates that run, over the same parameters and states, and their host times."""

    def __init__(self, row: Row, device: Device, settings: Settings, result: Result) -> None:
        self.work = Work(row, device.device, device.device)
        self.steps: dict[str, Step] = {}
        self.host = Timings()
        self._device, self._pool, self._times = device, StatePool(), settings.effort.warm_up
        for candidate in all_candidates(row, settings.backends, settings.with_compiled):
            reasons = result.missing if isinstance(candidate, Ours) else result.failed_peers
            try:
                if isinstance(candidate, Ours) and (text := difference(candidate, device)):
                    raise ArithmeticError(text)
                self._enter(candidate.name, self._ready(candidate, row.graph))
            except Exception as error:  # no compiler, no memory left, a backend that cannot run: others may
                reasons[candidate.name] = told(error)
        self._enter(COPY, copy_step(row.copy_bytes, device.device))

    def _ready(self, candidate: Candidate, graph: bool) -> Step:
        """The candidate's step, warmed up, with the states that all share; a replay of it where the row asks it."""
        with deadline(None if isinstance(candidate, Ours) else candidate.seconds):
            step = candidate.build(self.work.params)
            for _ in range(2):
                self.work.before_step()
                step()
                self._pool.share(step)
        whole = self.work.with_backward(step)
        return self._device.capture(whole) if graph else whole

    def _enter(self, name: str, step: Step) -> None:
        seconds = []
        for _ in range(self._times):
            self.work.before_step()
            seconds.append(self._device.host_seconds(step))
        self.steps[name], self.host.seconds[name] = step, seconds[self._times // 2 :]


def rounds(warm: Warm, device: Device, effort: Effort) -> Timings:
    """Times all steps in rotating order, round by round, until there are enough of them or the time is over."""
    order, timings = list(warm.steps.items()), Timings({name: [] for name in warm.steps})
    end = time.perf_counter() + effort.seconds
    gc.collect()
    gc.disable()
    for round_ in range(effort.rounds):
        first = round_ % len(order)
        warm.work.before_step()  # of the round: whether each finds moved gradients must not depend on their number
        for name, step in order[first:] + order[:first]:
            timings.seconds[name].append(device.step_seconds(step, warm.host.step(name).median))
        if time.perf_counter() > end:
            break
    gc.enable()
    return timings


def figures(row: Row, candidates: list[Candidate], timings: Timings, host: Timings, base: str) -> dict[str, Timed]:
    """What the rounds say of every candidate that was timed, and of the copy."""
    moved = {candidate.name: row.bytes_of(candidate.state_dtype, candidate.trick) for candidate in candidates}
    moved[COPY] = 2 * row.copy_bytes
    result = {}
    for name, seconds in timings.seconds.items():
        copied = timings.ratio(COPY, name)  # of times; slower is less
        share = moved[name] / moved[COPY]
        result[name] = Timed(
            timings.step(name),
            host.step(name),
            timings.ratio(name, base) if base in timings.seconds else None,
            moved[name],
            Spread(copied.median * share, copied.q1 * share, copied.q3 * share),
            seconds,
        )
    return result


def _measure_into(result: Result, row: Row, device: Device, settings: Settings) -> None:
    warm = Warm(row, device, settings, result)
    result.began = time.time()
    timings = rounds(warm, device, settings.effort)
    result.ended = time.time()
    candidates = all_candidates(row, settings.backends, settings.with_compiled)
    result.timed = figures(row, candidates, timings, warm.host, result.baseline)


def measure(row: Row, device: Device, settings: Settings) -> Result:
    """Check, warm up and time a row's candidates; its memory is free again afterwards."""
    result = Result(row.name, baseline(row))
    free = device.free_bytes()
    if row.memory_bytes > free:
        result.left_out = f"needs {row.memory_bytes / 2**30:.1f} GiB of GPU memory, {free / 2**30:.1f} GiB are free"
        return result
    try:
        _measure_into(result, small(row) if settings.dry_run else row, device, settings)
    except Exception as error:  # out of memory, or the device is lost: nothing was timed
        result.lose(row, settings, told(error))
    result.lost = device.is_lost()
    if not result.lost:
        device.release()
    return result
