"""Where things lie: the columns of the table of addresses, and the scratch of a step. Shared by all kernels."""

import triton
import triton.language as tl

from lrtricks_fused.step import table

PARAM = tl.constexpr(table.PARAM)
GRAD = tl.constexpr(table.GRAD)
STATE = tl.constexpr(table.STATE)
STEP = tl.constexpr(table.STEP)
NUMEL = tl.constexpr(table.NUMEL)
PARAM_INDEX = tl.constexpr(table.PARAM_INDEX)
FIRST_CHUNK = tl.constexpr(table.FIRST_CHUNK)
SLICE_LENGTH = tl.constexpr(table.SLICE_LENGTH)
FIRST_SLICE = tl.constexpr(table.FIRST_SLICE)
FIRST_PARTIAL = tl.constexpr(table.FIRST_PARTIAL)
SCALAR_STATE = tl.constexpr(table.SCALAR_STATE)
MIRROR = tl.constexpr(table.MIRROR)
LOW = tl.constexpr(table.MIRROR + 1)
CHANGES = tl.constexpr(table.MIRROR + 2)
GRAD_DTYPE = tl.constexpr(table.GRAD_DTYPE)
MIRROR_DTYPE = tl.constexpr(table.MIRROR_DTYPE)
SLAB = tl.constexpr(table.SLAB)
CHANNELS = tl.constexpr(table.CHANNELS)
BASE = tl.constexpr(table.BASE)
RUN = tl.constexpr(table.RUN)
PITCH = tl.constexpr(table.PITCH)
COLUMNS = tl.constexpr(table.COLUMNS)
CHUNK = tl.constexpr(table.CHUNK)

# The scratch, in words of 64 bits: WORDS for the call, then WORDS per tensor. Values of the compute type come first;
# the last word holds two of 32 bits: of the call its threshold and its flags, of a tensor its step count and whether it
# is one. The three words before hold of the call the addresses of the slices' means and of the slope's units, and
# 1 / grad_scale, as a double.
WORDS = tl.constexpr(table.PREPARED_BYTES // 8)
SLICE_MEANS = tl.constexpr(table.PREPARED_BYTES // 8 - 4)
SLOPE_UNITS = tl.constexpr(table.PREPARED_BYTES // 8 - 3)
INV_SCALE = tl.constexpr(table.PREPARED_BYTES // 8 - 2)
MASKED = tl.constexpr(1)  # flag: random bits decide
SKIP = tl.constexpr(2)  # flag: nothing is stepped


@triton.jit
def reals(words, REAL: tl.constexpr):
    """Pointer to 64-bit words as pointer to values of the compute type."""
    return words.to(tl.pointer_type(REAL), bitcast=True)


@triton.jit
def last_word(words):
    """The two 32-bit halves of the last word of eight."""
    return (words + (WORDS - 1)).to(tl.pointer_type(tl.int32), bitcast=True)
