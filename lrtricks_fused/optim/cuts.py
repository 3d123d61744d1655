"""How dimensions of a parameter are cut, and what index map the elements have that a rank holds. No DTensors here."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

from ..step.keep import IndexMap

Runs = list[tuple[int, int]]  # (first index, how many) in the order in which a rank holds them


class Split(NamedTuple):
    """What one dimension of a mesh does to one of a parameter: each of its chunks is cut into parts, one per rank."""

    mesh_dim: int
    dim: int
    parts: int
    chunks: int


def _part(runs: Runs, parts: int, which: int) -> Runs:
    """That one of the parts into which torch.chunk cuts the indices of ``runs``."""
    total = sum(length for _, length in runs)
    size = -(-total // parts)
    low, high = which * size, min((which + 1) * size, total)
    found, place = [], 0
    for first, length in runs:
        begin, end = max(low, place), min(high, place + length)
        if begin < end:
            found.append((first + begin - place, end - begin))
        place += length
    return found


def of_rank(runs: Runs, split: Split, which: int) -> Runs:
    """What that rank of the mesh's dimension holds of the indices of ``runs``."""
    found: Runs = []
    for chunk in range(split.chunks):
        for first, length in _part(_part(runs, split.chunks, chunk), split.parts, which):
            if found and sum(found[-1]) == first:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((first, length))
    return found


def _levels(shape: Sequence[int], runs: Sequence[Runs]) -> list[tuple[int, int]]:
    """How many of a rank's elements follow each other at which distance, then how many such groups, and so on.

    None at all where they lie in runs of several lengths or distances.
    """
    levels, stride = [(1, 1)], 1
    for size, own in zip(reversed(shape), reversed(runs), strict=True):
        firsts, lengths = zip(*own, strict=True)
        pitches = {after - before for before, after in pairwise(firsts)}
        if len({*lengths}) > 1 or len(pitches) > 1:
            return []
        for count, distance in ((lengths[0], stride), (len(own), stride * next(iter(pitches), 1))):
            inner, step = levels[-1]
            if distance == inner * step:
                levels[-1] = (inner * count, step)
            elif count > 1:
                levels.append((count, distance))
        stride *= size
    return levels


def _kinds(size: int, splits: Sequence[Split]) -> list[Runs]:
    """What ranks hold of a dimension that is cut so, but for where it begins, and without those that hold nothing.

    Of plain cuts the longest run is enough, the first rank's: a shorter one never has more levels.
    """
    kinds: list[Runs] = [[(0, size)]] if size else []
    plain = all(split.chunks == 1 for split in splits)
    for split in splits:
        found: dict[tuple[tuple[int, int], ...], Runs] = {}
        for runs in kinds:
            even = len(runs) == 1 and runs[0][1] % (split.chunks * split.parts) == 0
            for which in range(1 if plain or even else split.parts):
                own = of_rank(runs, split, which)
                if own:
                    found.setdefault(tuple((first - own[0][0], length) for first, length in own), own)
        kinds = list(found.values())
    return kinds


@lru_cache(maxsize=4096)
def all_have_maps(shape: tuple[int, ...], splits: tuple[Split, ...]) -> bool:
    """Whether the elements of every rank have an index map: all ranks say the same, and none is asked."""
    kinds = [_kinds(size, [split for split in splits if split.dim == dim]) for dim, size in enumerate(shape)]
    return all(0 < len(_levels(shape, runs)) <= 2 for runs in product(*kinds))


def map_of(shape: Sequence[int], runs: Sequence[Runs]) -> IndexMap:
    """The index map of the elements that a rank holds, which has some, where :func:`all_have_maps`."""
    base = 0
    for size, own in zip(shape, runs, strict=True):
        base = base * size + own[0][0]
    (run, _), *others = _levels(shape, runs)
    return IndexMap(base, run, others[0][1] if others else run)
