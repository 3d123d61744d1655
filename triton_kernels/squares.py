"""Squared norms of gradients in the order of sums of ``core/squares.h``; twin of ``cuda/squares.cu``."""

import triton
import triton.language as tl

from .doubles import from_halves, read_scalar
from .layout import CHUNK, COLUMNS, FIRST_CHUNK, GRAD, NUMEL, reals
from .philox import LANES, ROWS, TILE
from .rules import sqrt_rn
from .slope import SLOPE_COLUMNS, slope_units, total_of_columns
from .storage import pointer_to, to_real

AT_ONCE = tl.constexpr(16)  # of a tensor's columns, that are read at once


@triton.jit
def square_lanes(grads, lane, left, STORAGE: tl.constexpr, REAL: tl.constexpr, SIZE: tl.constexpr, FULL: tl.constexpr):
    """The sums of the squares of eight rows, of SIZE lanes."""
    lanes = tl.zeros([SIZE], REAL)
    for row in tl.static_range(ROWS):
        offset = lane + row * LANES
        grad = to_real(tl.load(grads + offset, None if FULL else offset < left, None if FULL else 0), STORAGE)
        lanes = lanes + grad * grad
    return lanes


@triton.jit
def square_chunk(
    row, begin, left, units, STORAGE: tl.constexpr, REAL: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """The units of one chunk. FULL: a whole one, aligned, in accesses of 16 bytes without a mask."""
    grads = pointer_to(tl.load(row + GRAD), STORAGE, FULL) + begin
    PASSES: tl.constexpr = CHUNK // (ROWS * BLOCK)
    for block in range(PASSES if FULL else tl.cdiv(left, ROWS * BLOCK)):
        number = block * BLOCK + tl.arange(0, BLOCK)
        lanes = square_lanes(grads, number // LANES * TILE + number % LANES, left, STORAGE, REAL, BLOCK, FULL)
        place = block * (BLOCK // UNIT) + tl.arange(0, BLOCK // UNIT)
        tl.store(units + place, slope_units(lanes, BLOCK, UNIT))


@triton.jit
def square_units(
    rows, chunk_tensors, scratch, STORAGE: tl.constexpr, REAL: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr
):
    """Squares to units; a chunk a program."""
    chunk = tl.program_id(0).to(tl.int64)
    row = rows + tl.load(chunk_tensors + chunk).to(tl.int64) * COLUMNS
    begin = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK
    left = tl.minimum(tl.load(row + NUMEL) - begin, CHUNK)
    units = reals(scratch, REAL) + chunk * (CHUNK // ROWS // UNIT)
    if (left == CHUNK) & (tl.load(row + GRAD) % 16 == 0):
        square_chunk(row, begin, left, units, STORAGE, REAL, UNIT, BLOCK, True)
    else:
        square_chunk(row, begin, left, units, STORAGE, REAL, UNIT, BLOCK, False)


@triton.jit
def chunks_of(row, mask):
    """Chunks of a tensor."""
    return (tl.load(row + NUMEL, mask, 0) + (CHUNK - 1)) // CHUNK


@triton.jit(do_not_specialize=["chunks"])
def sum_tensor_columns(rows, chunk_tensors, sums, chunks: tl.int64, BLOCK: tl.constexpr):
    """The columns of each tensor, in the places of their first chunks, which no other lane reads."""
    first = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = first < chunks
    row = rows + tl.load(chunk_tensors + first, inside, 0).to(tl.int64) * COLUMNS
    first_chunk = tl.load(row + FIRST_CHUNK, inside, 0)
    inside = inside & (first - first_chunk < SLOPE_COLUMNS)
    end = first_chunk + chunks_of(row, inside)
    total = tl.zeros([BLOCK], tl.float64)
    for step in range(tl.cdiv(tl.max(tl.where(inside, end - first, 0), 0), SLOPE_COLUMNS)):
        chunk = first + step * SLOPE_COLUMNS
        total = total + tl.load(sums + chunk, inside & (chunk < end), 0.0)
    tl.store(sums + first, total, inside)


@triton.jit(do_not_specialize=["tensors"])
def sum_tensors(rows, sums, squares, tensors: tl.int64, BLOCK: tl.constexpr):
    """Columns to tensors; BLOCK tensors a program."""
    tensor = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tensor < tensors
    row = rows + tensor * COLUMNS
    columns = tl.minimum(chunks_of(row, inside), SLOPE_COLUMNS)
    first = sums + tl.load(row + FIRST_CHUNK, inside, 0)
    total = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, tl.max(columns, 0), AT_ONCE):
        for k in tl.static_range(AT_ONCE):
            total = total + tl.load(first + begin + k, inside & (begin + k < columns), 0.0)
    tl.store(squares + tensor, total, inside)


@triton.jit(do_not_specialize=["count"])
def find_clip(squares, norm, factor, count: tl.int64, grad_scale, max_norm, BATCH: tl.constexpr):
    """Columns, which lie behind ``count`` squares, to the norm and the factor; the numbers by doubles.py."""
    value = sqrt_rn(total_of_columns(squares + count, BATCH)) * (1.0 / read_scalar(grad_scale, 0))
    (largest,) = from_halves(max_norm)
    wanted = largest / (value + 1e-6)
    tl.store(norm, value)
    tl.store(factor, tl.where(wanted > 1.0, 1.0, wanted))  # a NaN stays one
