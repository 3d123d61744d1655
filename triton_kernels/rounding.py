"""How float32 becomes what is stored, besides rounding to nearest (storage.py); twin of ``csrc/core/rounding.h``."""

import triton
import triton.language as tl

from lrtricks_fused.step import rounding

from .philox import draw
from .storage import from_real

PARAM_MULTIPLIER = tl.constexpr(rounding.PARAM_MULTIPLIER)
STATE_MULTIPLIERS = tl.constexpr(rounding.STATE_MULTIPLIERS)
EXPONENTS = tl.constexpr((127 - 15) << 23)  # from the exponents of float16 to those of float32
HALF_MIN_BITS = tl.constexpr(EXPONENTS.value + (1 << 23))
HALF_UNITS = tl.constexpr(2.0**40)  # of 2**-16 of the smallest subnormal


@triton.jit
def draw_pass(call, stepped, draws, VARIANT: tl.constexpr):
    """The four words of each Philox call of a pass, which decide, and round; zeros where none is drawn.

    With MAPPED none are for a chunk whose elements are scattered.
    """
    masked, stream, scattered = draws
    zero = tl.zeros_like(call).to(tl.uint32)
    w0, w1, w2, w3 = zero, zero, zero, zero
    drawn = masked
    if VARIANT.STOCHASTIC or VARIANT.STOCHASTIC_STATES:  # without a mask, too
        drawn = stepped > 0
    if VARIANT.MAPPED:
        drawn = drawn & (not scattered)
    if drawn:
        w0, w1, w2, w3 = draw(call.to(tl.uint32), stream)
    return w0, w1, w2, w3


@triton.jit
def rounding_bits(word, MULTIPLIER: tl.constexpr):
    """16 bits for each element: its own number, the upper half of its word, plus a multiple of the other one.

    The product's lower half is the other one, and carries nothing.
    """
    return word * (MULTIPLIER << 16 | 1) >> 16


@triton.jit
def stochastically_rounded(real, bits, STORAGE: tl.constexpr):
    """float32 as bfloat16 (its bits) or float16, up or down by 16 uniform bits."""
    word = real.to(tl.uint32, bitcast=True)
    magnitude = word & 0x7FFFFFFF
    nan = magnitude > 0x7F800000
    if STORAGE == tl.bfloat16:
        stored = tl.where(nan, 0x7FC0, (word + bits) >> 16).to(tl.uint16)
    else:
        is_small = magnitude < HALF_MIN_BITS
        moved = (magnitude + (bits >> 3) - EXPONENTS) >> 13
        normal = tl.where(moved < 0x7C00, moved, 0x7C00)
        small = tl.where(is_small, magnitude, HALF_MIN_BITS).to(tl.float32, bitcast=True) * HALF_UNITS
        subnormal = (small.to(tl.int32).to(tl.uint32) + bits) >> 16
        rounded = tl.where(is_small, subnormal, normal) | (word >> 16 & 0x8000)
        stored = tl.where(nan, 0x7E00, rounded).to(tl.uint16).to(tl.float16, bitcast=True)
    return stored


@triton.jit
def rounded(real, word, MULTIPLIER: tl.constexpr, STORAGE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """As it is stored: by 16 bits of a word, of the parameter's multiplier or a state's; or the nearest."""
    if STOCHASTIC:
        stored = stochastically_rounded(real, rounding_bits(word, MULTIPLIER), STORAGE)
    else:
        stored = from_real(real, STORAGE)
    return stored


@triton.jit
def split(master):
    """A float32 master as the bits of bfloat16, rounded half away from zero, and the int16 that completes it.

    A NaN must not become an infinity, nor another sign.
    """
    bits = master.to(tl.uint32, bitcast=True)
    word = tl.where((bits & 0x7FFFFFFF) >= 0x7FFF8000, bits & 0xFFFF7FFF, bits)
    return ((word + 0x8000) >> 16).to(tl.uint16), word.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def joined(high, low):
    """The float32 master of the bits of bfloat16 and what completes it."""
    return ((high.to(tl.uint32) << 16) + low.to(tl.int32).to(tl.uint32)).to(tl.float32, bitcast=True)
