"""The slope of a step, <grad, displacement>, in the order of sums of ``core/slope.h``; twin of ``cuda/slope.cuh``."""

import triton
import triton.language as tl

from lrtricks_fused.step import sums, table

from .layout import CHUNK, COLUMNS, FIRST_CHUNK, INV_SCALE, NUMEL, SKIP, last_word, reals
from .philox import LANES, TILE

SLOPE_COLUMNS = tl.constexpr(table.SLOPE_COLUMNS)
CHUNK_TILES = tl.constexpr(sums.CHUNK_TILES)


@triton.jit
def halves(lanes, SIZE: tl.constexpr):
    """Every other lane, from the first and from the second."""
    return tl.split(tl.reshape(lanes, [SIZE // 2, 2]))


@triton.jit
def slope_units(lanes, BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """Sums of UNIT = 2, 4 or 8 neighbouring lanes, each from first to last."""
    a, b = halves(lanes, BLOCK)
    if UNIT == 2:
        units = a + b
    else:
        a, c = halves(a, BLOCK // 2)
        b, d = halves(b, BLOCK // 2)
        if UNIT == 4:
            units = a + b + c + d
        else:
            a, e = halves(a, BLOCK // 4)
            b, f = halves(b, BLOCK // 4)
            c, g = halves(c, BLOCK // 4)
            d, h = halves(d, BLOCK // 4)
            units = a + b + c + d + e + f + g + h
    return units


@triton.jit(do_not_specialize=["chunks"])
def sum_chunks(
    rows, chunk_tensors, units, sums, chunks: tl.int64, REAL: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr
):
    """Units to tiles, tiles to chunks; BLOCK chunks a program."""
    chunk = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = chunk < chunks
    row = rows + tl.load(chunk_tensors + chunk, inside, 0).to(tl.int64) * COLUMNS
    left = tl.load(row + NUMEL, inside, 0) - (chunk - tl.load(row + FIRST_CHUNK, inside, 0)) * CHUNK
    tile_units: tl.constexpr = LANES // UNIT
    first = units.to(tl.pointer_type(REAL), bitcast=True) + chunk * (CHUNK_TILES * tile_units)
    total = tl.zeros([BLOCK], tl.float64)
    for tile in range(CHUNK_TILES):
        mask = inside & (tile * TILE < left)
        of_tile = tl.zeros([BLOCK], tl.float64)
        for unit in tl.static_range(tile_units):  # unrolled: all are read at once
            of_tile = of_tile + tl.load(first + tile * tile_units + unit, mask, 0).to(tl.float64)
        total = total + of_tile
    tl.store(sums + chunk, total, inside)


@triton.jit(do_not_specialize=["chunks"])
def sum_columns(sums, chunks: tl.int64):
    """Chunks to columns, which lie behind them."""
    column = tl.arange(0, SLOPE_COLUMNS)
    total = tl.zeros([SLOPE_COLUMNS], tl.float64)
    for first in range(0, chunks, SLOPE_COLUMNS):
        total = total + tl.load(sums + first + column, first + column < chunks, 0.0)
    tl.store(sums + chunks + column, total)


@triton.jit
def total_of_columns(columns, BATCH: tl.constexpr):
    """From the first to the last; after the first, BATCH of them are read at once."""
    total = tl.load(columns) + 0.0
    for first in range(1, SLOPE_COLUMNS, BATCH):
        for k in tl.static_range(BATCH):
            total = total + tl.load(columns + first + k)
    return total


@triton.jit(do_not_specialize=["chunks"])
def add_columns(sums, chunks: tl.int64, slope, prepared, BATCH: tl.constexpr):
    """Columns to the total, which ``slope`` gains times 1 / grad_scale, unless the step was skipped."""
    if tl.load(last_word(prepared) + 1) & SKIP == 0:
        total = total_of_columns(sums + chunks, BATCH)
        inv_scale = tl.load(reals(prepared + INV_SCALE, tl.float64))
        tl.store(slope, tl.load(slope) + total * inv_scale)
