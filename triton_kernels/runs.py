"""Runs of equal length in a chunk: slices of a gradient, what a shard holds, slabs; twin of ``cuda/runs.cuh``."""

import triton
import triton.language as tl

from lrtricks_fused.step import keep

from .layout import BASE, CHANNELS, CHUNK, PITCH, RUN, SLAB
from .philox import ROWS, TILE

MAX_ELEMENTS = tl.constexpr(keep.MAX_ELEMENTS)

# [note: Runs of a chunk]
# Offset i of a chunk lies in run (into + i) // length, counted from the one that begins ``into`` elements before the
# chunk. Of a length beyond a chunk's the excess is taken off both: the one boundary that the chunk may hold stays where
# it is. So length <= 2**13 and into + i < 2**14, and (into + i) * inverse >> 28 with inverse = 2**28 // length + 1 is
# exactly the quotient, because inverse * length exceeds 2**28 by at most length.
TWO_28 = tl.constexpr(2**28)
TWO_4 = tl.constexpr(2**4)


@triton.jit
def runs_of_chunk(begin, length):
    """The run in which the chunk begins, ``into`` and ``inverse`` of [note: Runs of a chunk]."""
    excess = tl.maximum(length - CHUNK, 0)
    first = begin // length
    into = tl.maximum(begin - first * length - excess, 0)
    inverse = TWO_28 // (length - excess) + 1
    return first, into.to(tl.int32), inverse.to(tl.uint32)


@triton.jit
def run_of(offset, into, inverse):
    """The number of the run that an offset lies in."""
    return tl.umulhi((into + offset).to(tl.uint32) * TWO_4, inverse).to(tl.int32)  # the upper word, so >> 28


@triton.jit
def map_of_chunk(row, begin):
    """Of a chunk of a shard, or of a tensor in channels_last: its runs, and what :func:`elements_of` needs."""
    length, slab = tl.load(row + RUN), tl.load(row + SLAB)
    channels = tl.maximum(tl.load(row + CHANNELS), 1)  # a divisor, also where the branch that divides is not taken
    runs = tl.where(slab != 0, slab, tl.where(length == 0, MAX_ELEMENTS, length))  # a whole one is one run
    first, into, inverse = runs_of_chunk(begin, runs)
    return begin, first, into, inverse, tl.load(row + BASE), length, tl.load(row + PITCH), slab, channels


@triton.jit
def elements_of(offset, index_map):
    """Which elements of the whole parameter those at these places of the chunk are."""
    begin, first, into, inverse, base, length, pitch, slab, channels = index_map
    run = first + run_of(offset, into, inverse)
    element = base + begin + offset + run * (pitch - length)
    if slab != 0:
        place = (begin + offset - run * slab).to(tl.uint32)
        of_channel = place // channels.to(tl.uint32)
        channel = place - of_channel * channels.to(tl.uint32)
        element = run * slab + channel.to(tl.int64) * (slab // channels) + of_channel
        if length != 0:
            run_length = tl.maximum(length, 1)
            element = base + element // run_length * pitch + element % run_length
    return element


@triton.jit
def place_of_chunk(left, index_map):
    """The first element of a chunk of so many, and whether they are scattered.

    Else they follow each other from the first lane of a tile on, and their Philox calls do not cross 2**32.
    """
    begin, first, into, inverse, base, length, pitch, slab, _ = index_map
    element = base + begin + first * (pitch - length)
    crosses = element // ROWS >> 32 != (element + CHUNK) // ROWS >> 32
    return element, (slab != 0) | (run_of(left - 1, into, inverse) != 0) | (element % TILE != 0) | crosses
