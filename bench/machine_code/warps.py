"""A model of one multiprocessor: warps that issue a trace of instructions, scoreboards, pipes and one memory queue.

A model, not a measurement. A warp issues in order, not before the stall count of its last instruction has passed and
the scoreboards it waits for are released; each of four schedulers issues one instruction a cycle, of the warp that has
been ready for longest, and a pipe of fewer lanes than a warp is busy for longer. All accesses to memory wait in one
queue, which serves the multiprocessor's share of the attainable bandwidth; a load is there a fixed latency after it was
served. The queue serves granules of GRANULE_BYTES in exponentially distributed times: a stand-in for channels and banks
that are not equally busy. By Little's law bandwidth is bytes in flight over latency, and the queue rounds the corner
where that meets the attainable bandwidth. Not modelled: clocks below boost, caches of instructions, what a taken branch
costs, refresh and page misses of the memory.
"""

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from .hardware import GRANULE_BYTES, LAUNCH_CYCLES, OPERAND_CYCLES, SCHEDULERS, VARIABLE_CYCLES, Gpu
from .scheduling import SCOREBOARDS

ROUND = 512  # random times of service, which repeat


@dataclass(frozen=True)
class Op:
    """One instruction of a trace.

    Attributes:
        stall: cycles until the next one of the warp.
        waits: (scoreboard, how many of its latest may still be out) before it is issued.
        write, read: scoreboards, or None, released when the result is there and when the operands have been read.
        pipe: name in Gpu.pipes, or "" for none.
        size: bytes per lane from or to memory; 0: none, or what the cache serves.
        cached: a load that the cache serves.
        store: whether it writes to memory.
    """

    stall: int
    waits: tuple[tuple[int, int], ...] = ()
    write: int | None = None
    read: int | None = None
    pipe: str = ""
    size: int = 0
    cached: bool = False
    store: bool = False


@dataclass(frozen=True)
class Launch:
    """How a kernel occupies a multiprocessor: blocks, and warps of each."""

    blocks: int
    warps: int


@dataclass(frozen=True)
class Run:
    """What was simulated.

    Attributes:
        share: of the attainable bandwidth, once blocks come and go.
        issue: share of the issue slots that were used.
        floor_us: microseconds of a block alone, where memory has no queue.
        in_flight: bytes of loads that were out, on average over all cycles.
    """

    share: float
    issue: float
    floor_us: float
    in_flight: float


def occupancy(gpu: Gpu, registers: int, threads: int, shared_bytes: int = 0) -> Launch:
    """Blocks per multiprocessor: what registers, warps, slots and shared memory leave room for."""
    warps = -(-threads // gpu.warp)
    of_a_warp = -(-registers // 8) * 8 * gpu.warp
    fitting = SCHEDULERS * (gpu.registers // SCHEDULERS // of_a_warp)
    blocks = min(fitting // warps, gpu.warps // warps, gpu.blocks, gpu.shared_bytes // (shared_bytes + 1024))
    if blocks < 1:
        raise ValueError(f"{threads} threads of {registers} registers and {shared_bytes} B do not fit on {gpu.name}")
    return Launch(blocks, warps)


def _exponential(seed: int) -> list[float]:
    """Quantiles of the exponential distribution of mean 1, shuffled: their mean is exact after each round."""
    values = [-math.log1p(-(i + 0.5) / ROUND) for i in range(ROUND)]
    mean = sum(values) / ROUND
    random.Random(seed).shuffle(values)
    return [value / mean for value in values]


class _Memory:
    """The queue."""

    def __init__(self, bytes_per_cycle: float, latency: float, seed: int | None) -> None:
        self.rate, self.latency = bytes_per_cycle, latency
        self.paces = itertools.cycle(_exponential(seed) if seed is not None else [1.0])
        self.pace, self.left = 1.0, 0
        self.free = self.out = 0.0  # bytes times cycles that loads were out

    def access(self, now: float, size: int, store: bool) -> float:
        """When ``size`` bytes asked for now are there."""
        self.free = max(self.free, now)
        rest = size
        while rest:
            if not self.left:
                self.pace, self.left = next(self.paces), GRANULE_BYTES
            part = min(rest, self.left)
            self.free += part / self.rate * self.pace
            self.left -= part
            rest -= part
        done = self.free + self.latency
        if not store:
            self.out += size * (done - now)
        return done


@dataclass
class _Warp:
    block: int
    scheduler: int
    place: int = 0  # in the trace
    out: list[list[float]] = field(default_factory=lambda: [[] for _ in range(SCOREBOARDS)])  # when each is released


class Multiprocessor:
    """Runs a trace on ``launch.blocks`` blocks at a time."""

    def __init__(self, gpu: Gpu, launch: Launch, ops: Sequence[Op], memory: _Memory) -> None:
        self.gpu, self.launch, self.ops, self.memory = gpu, launch, ops, memory
        self.busy = {pipe: max(1.0, SCHEDULERS * gpu.warp / lanes) for pipe, lanes in gpu.pipes.items()}
        self.busy[""] = 1.0
        self.free = [dict.fromkeys(self.busy, 0.0) for _ in range(SCHEDULERS)]  # of each pipe; "": the scheduler itself
        self.cache_cycles = gpu.cache_ns * gpu.gigahertz
        self.issued = 0

    def run(self, blocks: int, stagger: float = 0.0) -> list[float]:
        """When each block ended, in that order; the first ones start ``stagger`` cycles apart."""
        resident, size = min(self.launch.blocks, blocks), self.launch.warps
        warps = [_Warp(number // size, number % SCHEDULERS) for number in range(resident * size)]
        heap = [(warp.block * stagger, number) for number, warp in enumerate(warps)]
        left, ends, waiting = [size] * resident, [], blocks - resident
        while heap:
            now, number = heapq.heappop(heap)
            warp = warps[number]
            again = self._issue(warp, now)
            if again is not None:
                heapq.heappush(heap, (again, number))
                continue
            block = warp.block
            left[block] -= 1
            if left[block]:
                continue
            ends.append(now)
            if waiting:
                waiting, left[block] = waiting - 1, size
                for other in range(block * size, (block + 1) * size):
                    warps[other] = _Warp(block, other % SCHEDULERS)
                    heapq.heappush(heap, (now + LAUNCH_CYCLES, other))
        return ends

    def _issue(self, warp: _Warp, now: float) -> float | None:
        """Issues the warp's next operation, unless its pipe is busy; when the warp may issue again, None at its end."""
        op, free = self.ops[warp.place], self.free[warp.scheduler]
        at = max(free[""], free[op.pipe])
        if at > now:
            return at
        self.issued += 1
        free[""] = now + self.busy[""]
        if op.pipe:
            free[op.pipe] = now + self.busy[op.pipe]
        done = now + (self.cache_cycles if op.cached else VARIABLE_CYCLES)
        if op.size:
            done = self.memory.access(now, op.size * self.gpu.warp, op.store)
        if op.write is not None:
            warp.out[op.write].append(done)
        if op.read is not None:
            warp.out[op.read].append(now + OPERAND_CYCLES)
        warp.place += 1
        if warp.place == len(self.ops):
            return None
        again = now + max(op.stall, self.busy[""])
        for board, may_be_out in self.ops[warp.place].waits:
            times = warp.out[board]
            if len(times) > may_be_out:
                awaited = len(times) - may_be_out
                again = max(again, *times[:awaited])
                del times[:awaited]
        return again


def simulate(gpu: Gpu, launch: Launch, ops: Sequence[Op], chunk_bytes: int, waves: int = 8, seed: int = 0) -> Run:
    """Runs ``waves`` blocks in every place of a multiprocessor, and reads the bandwidth between the first and last.

    The first blocks start one after the other over the time that a block alone takes: in a long run they drift apart.
    """
    rate = gpu.attainable / gpu.gigahertz / gpu.sms
    latency = gpu.latency_ns * gpu.gigahertz
    alone = Multiprocessor(gpu, Launch(1, launch.warps), ops, _Memory(float("inf"), latency, None)).run(1)[0]
    memory = _Memory(rate, latency, seed)
    sm = Multiprocessor(gpu, launch, ops, memory)
    ends = sm.run(waves * launch.blocks, alone / launch.blocks)
    first, last = launch.blocks - 1, (waves - 1) * launch.blocks - 1
    cycles = ends[last] - ends[first]
    share = (last - first) * chunk_bytes / cycles / rate
    slots = SCHEDULERS * ends[-1]
    return Run(share, sm.issued / slots, alone / gpu.gigahertz / 1e3, memory.out / ends[-1])
