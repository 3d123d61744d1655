"""The means of the slices of a list of gradients, in the order of core/slice_mean.h; twin of ``cuda/slices.cuh``."""

import triton
import triton.language as tl

from lrtricks_fused.step import call

from .layout import COLUMNS, FIRST_PARTIAL, FIRST_SLICE, GRAD, SLICE_LENGTH
from .runs import run_of, runs_of_chunk
from .storage import from_real, pointer_to, to_real

PARTIAL_ELEMENTS = tl.constexpr(call.PARTIAL_ELEMENTS)
SLICE_PARTIALS = tl.constexpr(call.SLICE_PARTIALS)
MAX_SLICE_PARTIALS = tl.constexpr(call.MAX_SLICE_PARTIALS)
UNROLL = tl.constexpr(8)  # loads on their way at a time; the sums stay in order


@triton.jit
def slice_partials(length):
    """Partial sums of a slice: one if it is short, else a multiple of SLICE_PARTIALS."""
    full: tl.constexpr = PARTIAL_ELEMENTS * SLICE_PARTIALS
    many = tl.minimum((length + (full - 1)) // full * SLICE_PARTIALS, MAX_SLICE_PARTIALS)
    return tl.where(length < PARTIAL_ELEMENTS, 1, many)


@triton.jit
def row_of(rows, tensors, item, FIRST: tl.constexpr):
    """The row of the table that a slice or partial of the list belongs to: the last that begins with it or before."""
    low = tl.zeros_like(item)
    left = tensors
    while left > 1:  # rows from low on
        half = left // 2
        middle = low + half
        low = tl.where(tl.load(rows + middle * COLUMNS + FIRST) <= item, middle, low)
        left = left - half
    return rows + low * COLUMNS


@triton.jit
def items_of_program(items, BLOCK: tl.constexpr):
    """The program's items, and which of them there are; in place of the others the last one is taken."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return tl.minimum(item, items - 1), item < items


@triton.jit(do_not_specialize=["tensors", "partials"])
def sum_partials(
    rows, scratch, tensors: tl.int64, partials: tl.int64,
    STORAGE: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients to partials, in the compute type; BLOCK partials a program."""
    item, inside = items_of_program(partials, BLOCK)
    row = row_of(rows, tensors, item, FIRST_PARTIAL)
    length = tl.load(row + SLICE_LENGTH)
    of_row = item - tl.load(row + FIRST_PARTIAL)
    pitch = slice_partials(length)
    grads = pointer_to(tl.load(row + GRAD), STORAGE, False) + of_row // pitch * length
    total = tl.zeros([BLOCK], REAL)
    place = of_row % pitch
    for _ in range(tl.cdiv(tl.max((length + pitch - 1) // pitch, 0), UNROLL)):
        for _ in tl.static_range(UNROLL):
            total = total + to_real(tl.load(grads + place, place < length, 0), STORAGE)
            place = place + pitch
    tl.store(scratch + item, total, inside)


@triton.jit(do_not_specialize=["tensors", "slices", "partials"])
def find_means(rows, scratch, tensors: tl.int64, slices: tl.int64, partials: tl.int64, BLOCK: tl.constexpr):
    """Lanes to means, which lie behind all partials, in double and rounded once; BLOCK slices a program."""
    item, inside = items_of_program(slices, BLOCK)
    row = row_of(rows, tensors, item, FIRST_SLICE)
    length = tl.load(row + SLICE_LENGTH)
    count = slice_partials(length)
    sums = scratch + tl.load(row + FIRST_PARTIAL) + (item - tl.load(row + FIRST_SLICE)) * count
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, tl.max(count, 0), UNROLL):
        for k in tl.static_range(UNROLL):
            total = total + tl.load(sums + (first + k), first + k < count, 0.0).to(tl.float64)
    tl.store(scratch + partials + item, (total / length.to(tl.float64)).to(scratch.dtype.element_ty), inside)


# A tensor without slices has the mean 0, which is what its length is by its bits, too.
#
# [note: Length again] Which slices the elements lie in depends on nothing that a row loads, and the compiler finds it
# out for all rows of a pass at once, before it needs it: more numbers than registers hold. So each row asks for the
# slices' length again, which for all the compiler knows may have been written in between.


@triton.jit
def slices_of_chunk(row, begin, means, REAL: tl.constexpr):
    """The means from the chunk's first slice on, ``into`` and ``inverse`` of [note: Runs of a chunk].

    And the slices' length, with the place of it, see [note: Length again].
    """
    length = tl.load(row + SLICE_LENGTH)
    first, into, inverse = runs_of_chunk(begin, tl.maximum(length, 1))
    means += (tl.load(row + FIRST_SLICE) + first) * (REAL.primitive_bitwidth // 8)
    place = row + SLICE_LENGTH
    means = tl.where(length != 0, means, place.to(tl.int64))
    return means.to(tl.pointer_type(REAL)), into, tl.where(length != 0, inverse, 0).to(tl.uint32), length, place


@triton.jit
def mean_of(offset, mask, slices):
    """The means of the slices that the elements at these offsets lie in."""
    means, into, inverse, length, place = slices
    into = into + (tl.load(place) - length).to(into.dtype)  # by 0, see [note: Length again]
    return tl.load(means + run_of(offset, into, inverse), mask)


@triton.jit
def centralized(grad, mean, STORAGE: tl.constexpr):
    """The gradient less its slices' means, as it would be stored."""
    return to_real(from_real(grad - mean, STORAGE), STORAGE)
