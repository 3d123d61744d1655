"""Runs of equal length in a chunk: slices of a gradient, and what a shard holds; twin of ``cuda/runs.cuh``."""

import triton
import triton.language as tl

from lrtricks_fused.step import keep

from .layout import BASE, CHUNK, PITCH, RUN

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
    """Of a shard's chunk: its first element in the whole parameter, what lies between two runs, and its runs."""
    length = tl.load(row + RUN)
    gap = tl.load(row + PITCH) - length
    run, into, inverse = runs_of_chunk(begin, tl.where(length == 0, MAX_ELEMENTS, length))  # a whole one is one run
    return tl.load(row + BASE) + begin + run * gap, gap, into, inverse


@triton.jit
def elements_of(offset, index_map):
    """Which elements of the whole parameter those at these offsets of the chunk are."""
    first, gap, into, inverse = index_map
    return first + offset + run_of(offset, into, inverse) * gap
