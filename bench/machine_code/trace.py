"""The instructions that a warp executes over a full chunk, in order, found in a kernel's machine code.

What a branch does is not known from the text. Of all ways from the entry to the end the one is taken that makes all
wide accesses, draws or does not, makes few calls (slow paths of square root and division) and narrow accesses and is
else the longest. Loops run as often as it takes to draw, load and store the chunk once; a last pass may leave out the
loads for the next one, by a branch or by their predicates (which are then left out of the trace, slots of a few loads).
UnknownStructure where no number of passes does that.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from .sass import Instruction, Loop, UnknownStructure, loops, successors

PHILOX_PRODUCT = re.compile(r"-0x2daee0ad|0xd2511f53|^v_mul_hi_u32|^v_mad_u64_u32")
PRODUCTS = 7  # by this multiplier, of a call with as many rounds
MOST_PASSES = 64
_STORE, _LOAD = 10**12, 10**8  # of wide ones, a byte; so worth against 1 for an instruction
_NARROW_STORE, _CALL, _DRAW, _NARROW_LOAD = 10**7, 10**6, 10**4, 10**2

Ahead = Literal["nothing", "column", "chunk"]  # of which the last pass loads for no other, where passes load ahead


@dataclass(frozen=True)
class Work:
    """What a thread does to a full chunk.

    Attributes:
        loaded: bytes of parameters, gradients and states.
        stored: the same.
        wide: bytes of the narrowest access to them; what is narrower reads the table, constants and the like.
        masked: whether keep bits are drawn.
        columns: most passes of the outer loop, over columns of a tile.
        calls: of Philox in a column.
    """

    loaded: int
    stored: int
    wide: int
    masked: bool
    columns: int = MOST_PASSES
    calls: int = 1


def draws(instruction: Instruction) -> bool:
    """Whether it is one of Philox's products by the first multiplier."""
    return any(PHILOX_PRODUCT.search(text) for text in (instruction.opcode, instruction.operands))


class _Finder:
    """Ways through one kernel by one nest of loops, outer first."""

    def __init__(self, code: Sequence[Instruction], work: Work, nest: Sequence[Loop], ahead: Ahead) -> None:
        self.code, self.work, self.nest, self.ahead = code, work, nest, ahead
        found = loops(code)
        related = [it for it in found if any(it == mine or it.contains(mine) or mine.contains(it) for mine in nest)]
        drawing = [it for it in found if work.masked and self._calls(it) and not self._accesses(it)]
        others = [it for it in found if it not in (*related, *drawing)]
        self.drawing = [it for it in drawing if not any(other.contains(it) for other in others)]
        self.elsewhere = {i for it in others for i in range(it.head, it.end + 1)}
        self.bodies: dict[tuple[int, bool], list[int]] = {}

    def _accesses(self, loop: Loop) -> bool:
        return any(self.code[i].access_bytes for i in range(loop.head, loop.end + 1))

    def _calls(self, loop: Loop) -> int:
        return sum(draws(self.code[i]) for i in range(loop.head, loop.end + 1)) // PRODUCTS

    def _value(self, index: int, loads: int) -> int:
        this, work = self.code[index], self.work
        size = this.access_bytes
        if size >= work.wide:
            return size * (-_STORE if index in self.elsewhere else _STORE if this.is_store else loads * _LOAD)
        narrow = _NARROW_STORE if this.is_store else _NARROW_LOAD if size else 0
        drawn = (_DRAW if work.masked and index not in self.elsewhere else -_DRAW) * draws(this)
        return drawn - narrow - _CALL * this.is_call + (-1 if index in self.elsewhere else 1)

    def _onward(self, index: int) -> Iterator[int]:
        yield from successors(self.code, index)
        if self.code[index].is_call and not self.code[index].guarded:
            yield index + 1

    def way(self, first: int, goals: Iterable[int], loads: int = 1) -> list[int]:
        """The best way from ``first`` to one of ``goals``, both included, that never goes back."""
        goals = set(goals)
        best: dict[int, tuple[int, int]] = {}
        for i in range(max(goals), first - 1, -1):
            onward = [(0, -1)] if i in goals else []
            if i not in goals or self.code[i].is_exit:  # an exit may be guarded
                onward += [(best[way][0], way) for way in self._onward(i) if way > i and way in best]
            if onward:
                value, way = max(onward)
                best[i] = (value + self._value(i, loads), way)
        if first not in best:
            raise UnknownStructure(f"no way from {first} to {sorted(goals)}")
        found = [first]
        while best[found[-1]][1] >= 0:
            found.append(best[found[-1]][1])
        return found

    def _is_predicated_load(self, index: int) -> bool:
        this = self.code[index]
        return this.guarded and this.access_bytes >= self.work.wide and not this.is_store

    def _passes(self, loop: Loop, columns: int, passes: int) -> int:
        if loop in self.drawing:
            return max(1, self.work.calls // self._calls(loop))
        if loop not in self.nest:
            return 1
        return passes if loop == self.nest[-1] else columns

    def _loads(self, inside: Loop | None) -> int:
        """-1 where the last pass of the innermost loop, on the way through a loop or the whole, loads for no other."""
        last = self.ahead != "nothing" if inside is None else self.ahead == "column" and inside != self.nest[-1]
        return -1 if last else 1

    def _body(self, loop: Loop) -> list[int]:
        loads = self._loads(loop)
        key = (loop.head, loads > 0)
        if key not in self.bodies:
            self.bodies[key] = self.way(loop.head, [loop.end], loads)
        return self.bodies[key]

    def repeated(self, way: Sequence[int], inside: Loop | None, columns: int, passes: int) -> Iterator[int]:
        """The way, with every loop that it enters run as often as it takes."""
        repeating = {it.head: it for it in (*self.drawing, *self.nest) if it != inside}
        before = -1
        for i in way:
            loop = repeating.get(i)
            if loop and not loop.head <= before <= loop.end:
                for _ in range(self._passes(loop, columns, passes) - 1):
                    yield from self.repeated(self._body(loop), loop, columns, passes)
            if self._loads(inside) > 0 or not self._is_predicated_load(i):
                yield i
            before = i

    def whole(self) -> list[int] | None:
        """The way through the nest; None if no number of passes does the work."""
        ends = [i for i, it in enumerate(self.code) if it.is_exit]
        once = self.way(0, ends, self._loads(None))
        several = range(self.work.columns if len(self.nest) == 2 else 1, 0, -1)
        for columns, passes in product(several, range(1, MOST_PASSES if self.nest else 2)):
            way = list(self.repeated(once, None, columns, passes))
            moved = [0, 0]
            for i in way:
                if self.code[i].access_bytes >= self.work.wide:
                    moved[self.code[i].is_store] += self.code[i].access_bytes
            drawn = any(draws(self.code[i]) for i in way)
            if (*moved, drawn) == (self.work.loaded, self.work.stored, self.work.masked):
                return way
            if moved[1] > self.work.stored:
                break
        return None


def trace(code: Sequence[Instruction], work: Work) -> list[int]:
    """The indices of the instructions that a warp executes, the shortest of those that do the work."""
    wide = [it for it in loops(code) if any(code[i].access_bytes >= work.wide for i in range(it.head, it.end + 1))]
    innermost = [it for it in wide if not any(it.contains(other) for other in wide)]
    # Loops with narrow accesses too, for operands at any address, do a full chunk's work only where no other does.
    innermost = [it for it in innermost if all(not 0 < code[i].access_bytes < work.wide
                                               for i in range(it.head, it.end + 1))] or innermost  # fmt: skip
    nests: list[list[Loop]] = [[]] if not innermost else []
    for inner in innermost:
        around = sorted((it for it in wide if it.contains(inner)), key=lambda it: it.head)
        nests.append([*around[-1:], inner])
    finders = (_Finder(code, work, nest, ahead) for nest in nests for ahead in get_args(Ahead))
    ways = [way for finder in finders if (way := finder.whole())]
    if not ways:
        raise UnknownStructure(f"no way loads {work.loaded} and stores {work.stored} bytes, masked: {work.masked}")
    return min(ways, key=len)
