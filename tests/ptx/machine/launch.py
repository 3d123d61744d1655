"""Runs the threads of a launch: all that are at the same instruction at a time, those that are behind first.

Where threads take different ways, the ones whose next instruction stands first in the text go on; so they meet again
where the ways do. Blocks of threads are independent: as many as suit run side by side.
"""

import importlib
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from .instructions import bind
from .kernels import BRANCHES, ENDS, Block, Instruction, Kernel, Symbol, UnknownPtx
from .memory import Memory
from .parse import kernel
from .races import Access, find_races
from .registers import WARP, Execute, Lanes, Mask, UndefinedRead
from .undefined import copied, suspects, used, written

for _table in ("integers", "floats", "moves", "accesses", "warps"):
    importlib.import_module(f".{_table}", __package__)  # enters its instructions

LANES = 2048  # at a time
PROGRAMS = 8  # that are kept, with registers of up to 50 MB each
MOST_BLOCKS = 10_000_000  # that one thread goes through, before a loop is taken for endless
DONE = 1 << 40  # where a thread is that has returned


class Deadlock(Exception):
    """Threads wait for others that never come."""


class LaunchError(Exception):
    """A launch that a driver would refuse."""


@dataclass
class Machine:
    """Kernels by their names, and the memory they run on.

    Attributes:
        contracted: whether what ptxas might contract is executed as it stands, and not refused.
        launches: (kernel, blocks, threads of each), one after another.
        executed: how many instructions of an opcode threads have executed.
    """

    memory: Memory = field(default_factory=Memory)
    contracted: bool = False
    launches: list[tuple[str, int, int]] = field(default_factory=list)
    executed: Counter = field(default_factory=Counter)
    _texts: dict[str, str] = field(default_factory=dict)
    _kernels: dict[str, Kernel] = field(default_factory=dict)
    _programs: dict[tuple[str, int, int, int], "Program"] = field(default_factory=dict)

    def load(self, texts: dict[str, str]) -> None:
        """Adds kernels by what parse.entries says; what has their names is replaced."""
        self._texts |= texts
        for name in texts:
            self._kernels.pop(name, None)
            for key in [key for key in self._programs if key[0] == name]:
                del self._programs[key]

    def kernel(self, name: str) -> Kernel:
        """A kernel, parsed when it is first asked for."""
        if name not in self._kernels:
            if name not in self._texts:
                raise LaunchError(f"no kernel {name}")
            self._kernels[name] = kernel(self._texts[name])
        return self._kernels[name]

    def launch(self, name: str, grid: int, threads: int, params: bytes, dynamic_shared: int = 0) -> None:
        """Runs a grid of one dimension; ``params`` as they lie in the kernel's parameter space."""
        this = self.kernel(name)
        if grid < 1 or threads < 1 or threads > 1024:
            raise LaunchError(f"{grid} blocks of {threads} threads")
        if this.threads is not None and (threads > this.threads or (this.exactly and threads != this.threads)):
            raise LaunchError(f"{threads} threads of {name}, which is compiled for {this.threads}")
        if len(params) < this.param_bytes:
            raise LaunchError(f"{len(params)} bytes of parameters of {name}, which takes {this.param_bytes}")
        given = np.frombuffer(params, np.uint8)[: this.param_bytes]
        most = max(1, LANES // threads)
        with np.errstate(all="ignore"):
            for first in range(0, grid, most):
                blocks = min(most, grid - first)
                self._program(name, blocks, threads, dynamic_shared).run(first, grid, given, self.executed)
                self.memory.check_races(threads, first == 0, first + blocks == grid)
        self.launches.append((name, grid, threads))

    def _program(self, name: str, blocks: int, threads: int, dynamic_shared: int) -> "Program":
        key = name, blocks, threads, dynamic_shared
        if key not in self._programs:
            while len(self._programs) >= PROGRAMS:
                del self._programs[next(iter(self._programs))]
            lanes = BoundLanes(self.kernel(name), blocks, threads, dynamic_shared, self.memory)
            lanes.contracted = self.contracted
            self._programs[key] = Program(lanes)
        return self._programs[key]


class BoundLanes(Lanes):
    """Lanes that know their place in the launch, and what they have done to shared memory."""

    def start(self, first_block: int, grid: int, params: np.ndarray) -> None:
        super().start(first_block, grid, params)
        self.number = (self.lane + first_block * self.threads).astype(np.int32)
        self._shared_accesses: list[Access] = []

    def order(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chosen lanes' numbers in the launch, and the barriers of block and warp that each has passed."""
        return self.number[chosen], self.epoch[chosen], self.warp_epoch[chosen]

    def note_shared(self, access: Access) -> None:
        """Between barriers, that is, in an epoch, threads race."""
        places = access.addresses + access.epochs.astype(np.int64) * self.shared.size
        self._shared_accesses.append(replace(access, addresses=places))

    def finish(self) -> None:
        """The end of these lanes: races in shared memory."""
        accesses, self._shared_accesses = self._shared_accesses, []
        find_races(accesses, self.shared.size * (int(self.epoch.max()) + 1), self.threads)


class Program:
    """A kernel bound to lanes."""

    def __init__(self, lanes: BoundLanes) -> None:
        self.lanes, self.kernel = lanes, lanes.kernel
        self.labels = {block.label: k for k, block in enumerate(self.kernel.blocks) if block.label}
        self.suspects = suspects(self.kernel, self.labels)
        lanes.defined = {name: np.zeros(lanes.count, bool) for name in self.suspects}
        self.bound: list[list[tuple[str, Execute]] | None] = [None] * len(self.kernel.blocks)
        self.groups = {"warp": self._numbers(WARP), "block": lanes.block, None: None}

    def _numbers(self, size: int) -> np.ndarray:
        """Of each lane, the number of its group of so many threads."""
        of_block = -(-self.lanes.threads // size)
        return self.lanes.block * of_block + self.lanes.thread // size

    def run(self, first_block: int, grid: int, params: np.ndarray, executed: Counter) -> None:
        """All threads, from the first instruction to the last."""
        self.lanes.start(first_block, grid, params)
        self.place = np.zeros(self.lanes.count, np.int64)
        waiting = np.zeros(self.lanes.count, bool)
        for _ in range(MOST_BLOCKS):
            running = np.where(waiting, DONE, self.place)
            first = int(running.min())
            if first >= DONE:
                if waiting.any():
                    raise Deadlock(f"{self.kernel.name}: {self._where(waiting)}")
                break
            mask = running == first
            block = self.kernel.blocks[first]
            if block.waits:
                mask, late = self._complete(block, first, mask)
                waiting |= late
                if not mask.any():
                    continue
            self._execute(first, True if mask.all() else mask, mask, executed)
            waiting[:] = False
        else:
            raise Deadlock(f"{self.kernel.name} does not end")
        self.lanes.finish()

    def _complete(self, block: Block, index: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the lanes at the block, those whose whole group is, and the others."""
        groups = self.groups[block.waits]
        elsewhere = (self.place != index) & (self.place < DONE)
        missing = np.bincount(groups, elsewhere) > 0
        late = mask & missing[groups]
        return mask & ~late, late

    def _where(self, waiting: np.ndarray) -> str:
        blocks = {int(place) for place in self.place[waiting]}
        return "; ".join(self.kernel.blocks[k].instructions[0].text for k in sorted(blocks))

    def _execute(self, index: int, mask: Mask, there: np.ndarray, executed: Counter) -> None:
        if self.bound[index] is None:
            self.bound[index] = [(this.opcode, self._bind(this)) for this in self.kernel.blocks[index].instructions]
        block, many = self.kernel.blocks[index], int(there.sum())
        for opcode, execute in self.bound[index]:
            executed[opcode] += many
            execute(mask)
        last = block.instructions[-1] if block.instructions else None
        goes_on = index + 1 if index + 1 < len(self.kernel.blocks) else DONE
        if last is None or last.opcode not in (*BRANCHES, *ENDS):
            self.place[there] = goes_on
            return
        target = DONE if last.opcode in ENDS else self.labels[last.operands[0].name]
        if last.guard is None:
            self.place[there] = target
        else:
            taken = self.lanes.read(last.guard, "pred") ^ last.negated
            self.place[there & taken] = target
            self.place[there & ~taken] = goes_on

    def _bind(self, this: Instruction) -> Execute:
        """What executes an instruction, with a watch on the registers that may be undefined."""
        if this.opcode in BRANCHES or this.opcode in ENDS:
            if this.opcode in BRANCHES and not isinstance(this.operands[0], Symbol):
                raise UnknownPtx(this.text)
            execute: Execute = lambda mask: None  # noqa: E731 (the block's end)
        else:
            execute = bind(this, self.lanes)
        read, write = used(this) & self.suspects, written(this) & self.suspects
        return self._watched(this, execute, read, write) if read or write else execute

    def _watched(self, this: Instruction, execute: Execute, read: set[str], write: set[str]) -> Execute:
        defined, guard = self.lanes.defined, this.guard and self.lanes.read(this.guard, "pred")
        copy = copied(this)
        copy = copy if copy is not None and copy[1] in read else None

        def run(mask: Mask) -> None:
            if this.guard is not None and this.guard.name in read and not defined[this.guard.name][mask].all():
                raise UndefinedRead(f"{this.guard.name}: {this.text}")
            active = mask if guard is None else (guard ^ this.negated) & mask
            for name in () if copy else read:
                if not defined[name][active].all():
                    raise UndefinedRead(f"{name}: {this.text}")
            execute(mask)
            for name in write:
                defined[name][active] = defined[copy[1]][active] if copy else True

        return run
