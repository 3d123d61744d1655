"""The means of the slices of a list of gradients, in the order of core/slice_mean.h; twin of ``cuda/slices.cuh``."""

import triton
import triton.language as tl

from lrtricks_fused.step import call, table

from .step import COLUMNS, FIRST_SLICE, GRAD, SLICE_LENGTH, pointer_to, to_real

LANE_ELEMENTS = tl.constexpr(call.LANE_ELEMENTS)
SLICE_LANES = tl.constexpr(call.SLICE_LANES)
MAX_SLICE_LANES = tl.constexpr(call.MAX_SLICE_LANES)
FIRST_LANE = tl.constexpr(table.FIRST_LANE)
UNROLL = tl.constexpr(8)  # loads on their way at a time; the sums stay in order


@triton.jit
def slice_lanes(length):
    """Lanes of a slice: one if it is short, else a multiple of SLICE_LANES."""
    full: tl.constexpr = LANE_ELEMENTS * SLICE_LANES
    return tl.where(length < LANE_ELEMENTS, 1, tl.minimum((length + (full - 1)) // full * SLICE_LANES, MAX_SLICE_LANES))


@triton.jit
def row_of(rows, tensors, item, FIRST: tl.constexpr):
    """The row of the table that a slice or lane of the list belongs to: the last that begins with it or before."""
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


@triton.jit(do_not_specialize=["tensors", "lanes"])
def sum_lanes(
    rows, scratch, tensors: tl.int64, lanes: tl.int64,
    STORAGE: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients to lanes, in the compute type; BLOCK lanes a program."""
    item, inside = items_of_program(lanes, BLOCK)
    row = row_of(rows, tensors, item, FIRST_LANE)
    length = tl.load(row + SLICE_LENGTH)
    of_row = item - tl.load(row + FIRST_LANE)
    pitch = slice_lanes(length)
    grads = pointer_to(tl.load(row + GRAD), STORAGE, False) + of_row // pitch * length
    total = tl.zeros([BLOCK], REAL)
    place = of_row % pitch
    for _ in range(tl.cdiv(tl.max((length + pitch - 1) // pitch, 0), UNROLL)):
        for _ in tl.static_range(UNROLL):
            total = total + to_real(tl.load(grads + place, place < length, 0), STORAGE)
            place = place + pitch
    tl.store(scratch + item, total, inside)


@triton.jit(do_not_specialize=["tensors", "slices", "lanes"])
def find_means(rows, scratch, tensors: tl.int64, slices: tl.int64, lanes: tl.int64, BLOCK: tl.constexpr):
    """Lanes to means, which lie behind all lanes, in double and rounded once; BLOCK slices a program."""
    item, inside = items_of_program(slices, BLOCK)
    row = row_of(rows, tensors, item, FIRST_SLICE)
    length = tl.load(row + SLICE_LENGTH)
    count = slice_lanes(length)
    sums = scratch + tl.load(row + FIRST_LANE) + (item - tl.load(row + FIRST_SLICE)) * count
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, tl.max(count, 0), UNROLL):
        for k in tl.static_range(UNROLL):
            total = total + tl.load(sums + (first + k), first + k < count, 0.0).to(tl.float64)
    tl.store(scratch + lanes + item, (total / length.to(tl.float64)).to(scratch.dtype.element_ty), inside)
