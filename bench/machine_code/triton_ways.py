"""The ways through the machine code of Triton's step_kernel: what a full chunk executes, and the order of its loads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import sass
from .trace import draws


@dataclass(frozen=True)
class Shape:
    """How a full chunk is laid out: what a thread does to it."""

    elements: int  # of a chunk, per thread
    block: int  # elements that an access moves
    sizes: tuple[int, ...]  # bytes of an element of each kind of operand
    traffic: int  # bytes per parameter
    mean: int = 0  # bytes of a slice's mean, which each parameter reads besides; narrower than any other access
    rounds: bool = False  # whether words are drawn in any case, for they round

    @property
    def passes(self) -> int:
        """How often the loop runs; with one pass there is no loop."""
        return self.elements // (8 * self.block)

    @property
    def narrowest(self) -> int:
        """Bytes of the narrowest access to an aligned operand."""
        return self.block * min(self.sizes)


@dataclass(frozen=True)
class Way:
    """What a full chunk executes: instructions once, and those of the loop in every pass, if there is a loop."""

    before: tuple[int, ...]
    loop: tuple[int, ...]

    def cost(self, code: Sequence[sass.Instruction], shape: Shape) -> float:
        """Instructions per parameter."""
        before, loop = (sum(code[i].counts for i in part) for part in (self.before, self.loop))
        return (before + shape.passes * loop) / shape.elements


def _looped(code: Sequence[sass.Instruction], shape: Shape, found: list[sass.Loop]) -> tuple[list[Way], bool]:
    """Both ways through one loop, or through two, and whether the draws have the only branch, or none."""
    start = sass.committed(code, {loop.head for loop in found})
    ways, branches = [], 0
    for loop in found:
        before, inside = sass.ways(code, start, loop.head), sass.passes(code, loop)
        branches += len(before.branches) + len(inside.branches)
        for kind in ("longest", "shortest"):
            ways.append(Way(getattr(before, kind)[:-1], getattr(inside, kind)))
    if shape.rounds:
        return ways, branches == 0 and len(found) == 1
    return (ways, branches == 1) if len(found) == 1 else (ways[::2], branches == 0)


def full_ways(code: Sequence[sass.Instruction], shape: Shape) -> tuple[list[Way], bool]:
    """The ways of a full chunk from where it is known to be one, and whether only draws are branched around.

    A loop over passes with a branch around the draws, none where it is rounded; two loops, when the compiler has made
    that branch choose between them; or, with a single pass or unrolled ones, a branch in each. Narrow accesses to an
    operand, which a tail has and a chunk whose gradient is unaligned, are in none.
    """
    found = [loop for loop, wide in whole_loops(code, shape) if wide]
    if found:
        return _looped(code, shape, found)
    ways = [way for way, wide in whole_ways(code, shape) if wide]
    if len(ways) != 1:
        raise sass.UnknownStructure(f"{len(ways)} ways of a full chunk of aligned operands")
    (way,) = ways
    return [Way(way.longest, ()), Way(way.shortest, ())], len(way.branches) == (0 if shape.rounds else shape.passes)


def _moved(code: Sequence[sass.Instruction], way: tuple[int, ...], least: int = 1) -> int:
    return sum(code[i].access_bytes for i in way if code[i].access_bytes >= least)


def whole_loops(code: Sequence[sass.Instruction], shape: Shape) -> list[tuple[sass.Loop, bool]]:
    """The loops over the passes of a full chunk, and whether all their accesses to operands are wide.

    Where there are means, each of its eight rows may ask for a slice's length, too.
    """
    if shape.passes == 1:
        return []
    found, size = [], shape.elements * shape.traffic
    means, lengths = shape.elements * shape.mean, range(8 * 8 * shape.passes + 1 if shape.mean else 1)
    for loop in sass.loops(code):
        way = sass.passes(code, loop).shortest
        if shape.passes * _moved(code, way) - size - means in lengths:
            found.append((loop, shape.passes * _moved(code, way, shape.narrowest) == size))
    return found


def whole_ways(code: Sequence[sass.Instruction], shape: Shape) -> list[tuple[sass.Passes, bool]]:
    """The same where there is no loop: the ways with wide stores, of which there are some."""
    ways, size = [], shape.elements * shape.traffic
    stores = [i for i, this in enumerate(code) if this.is_store and this.access_bytes > max(shape.sizes)]
    while stores:
        way = sass.ways(code, sass.committed(code, {stores[0]}), sass.exit_after(code, stores[0]))
        stores = [i for i in stores[1:] if i not in way.shortest]
        ways.append((way, _moved(code, way.shortest, shape.narrowest) == size))  # what is narrower reads the table
    return ways


def unaligned_widths(code: Sequence[sass.Instruction], shape: Shape) -> dict[int, int]:
    """The accesses of a full chunk whose gradient is not aligned, and a few to the table, per pass, by their bytes."""
    loops = [sass.passes(code, loop).shortest for loop, wide in whole_loops(code, shape) if not wide]
    found = loops or [way.shortest for way, wide in whole_ways(code, shape) if not wide]
    if not found:
        raise sass.UnknownStructure("no way of a full chunk with an unaligned gradient")
    widths = [code[i].access_bytes for i in found[0]]
    return dict(Counter(width for width in widths if width))


def loads_before_store(code: Sequence[sass.Instruction], way: Sequence[int], widths: Sequence[int]) -> int:
    """The most loads of these widths on a way without a store among them."""
    most = run = 0
    for this in (code[i] for i in way):
        run = 0 if this.is_store else run + (this.access_bytes in widths)
        most = max(most, run)
    return most


def masked_and_unmasked(code: Sequence[sass.Instruction], shape: Shape) -> tuple[Way, Way]:
    """Both ways of a full chunk; UnknownStructure if they differ in more than the draws that decide.

    Where it is rounded, for which words are drawn in any case, they must not differ at all.
    """
    ways, known = full_ways(code, shape)
    masked, unmasked = sorted(ways, key=lambda way: way.cost(code, shape), reverse=True)[:2]
    own, rest = ({*this.before, *this.loop} - {*other.before, *other.loop}
                 for this, other in ((masked, unmasked), (unmasked, masked)))  # fmt: skip
    drawn, drawn_besides = (sum(draws(code[i]) for i in side) for side in (own, rest))
    if len(ways) != 2 or bool(drawn) == shape.rounds or drawn_besides or not known:
        raise sass.UnknownStructure(
            f"{len(ways)} ways, {drawn} and {drawn_besides} draws, no branches besides: {known}"
        )
    return masked, unmasked


def parts(code: Sequence[sass.Instruction], shape: Shape, masked: bool) -> tuple[list[int], list[int]]:
    """What a full chunk executes: until its operands are accessed, where it reads tables, and from then on."""
    way = masked_and_unmasked(code, shape)[0 if masked else 1]
    before = [*sass.ways(code, 0, way.before[0]).shortest[:-1]]
    return ([*before, *way.before], [*way.loop * shape.passes]) if way.loop else (before, [*way.before])


def count(code: Sequence[sass.Instruction], shape: Shape) -> dict[str, Any]:
    """What a full chunk executes as fields of Reading; UnknownStructure if the code is not as expected."""
    masked, unmasked = masked_and_unmasked(code, shape)
    body = unmasked.loop or unmasked.before
    narrowest = 1 if unmasked.loop and not shape.mean else shape.narrowest
    widths = [code[i].access_bytes for i in body]
    executed = {i for way in (masked, unmasked) for part in (way.before, way.loop) for i in part}
    return {
        "widths": dict(Counter(width for width in widths if width >= narrowest)),
        "local_accesses": sum(code[i].is_local for i in executed),
        "masked": masked.cost(code, shape),
        "unmasked": unmasked.cost(code, shape),
        "ahead": loads_before_store(code, body, [shape.block * size for size in shape.sizes]),
        "unaligned": unaligned_widths(code, shape),
        "tail_ahead": loads_before_store(code, range(len(code)), shape.sizes),
    }
