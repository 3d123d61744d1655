"""The random bits and the keep decision: twin of ``csrc/core/philox.h`` and ``csrc/core/keep.h``."""

import triton
import triton.language as tl

from lrtricks_fused.step import keep

M0 = tl.constexpr(0xD2511F53)
M1 = tl.constexpr(0xCD9E8D57)
W0 = tl.constexpr(0x9E3779B9)
W1 = tl.constexpr(0xBB67AE85)
ROUNDS = tl.constexpr(keep.ROUNDS)
ELEMENTS = tl.constexpr(keep.ELEMENTS)  # the stream of keep decisions

LANES = tl.constexpr(keep.LANES)  # consecutive elements that use consecutive counters
TILE = tl.constexpr(keep.TILE)
ROWS = tl.constexpr(keep.TILE // keep.LANES)  # of a tile, all served by its 64 calls
KEEP_ALL = tl.constexpr(65536)
TWO_52 = tl.constexpr(4503599627370496.0)


@triton.jit
def philox4x32(c0, c1, c2, c3, key0, key1):
    """Philox4x32 (Salmon et al., SC 2011) of uint32 counters; four words."""
    for _ in tl.static_range(ROUNDS):
        hi0, lo0 = tl.umulhi(c0, M0), c0 * M0
        hi1, lo1 = tl.umulhi(c2, M1), c2 * M1
        c0 = hi1 ^ (c1 ^ key0)
        c2 = hi0 ^ (c3 ^ key1)
        c1 = lo1
        c3 = lo0
        key0 = key0 + W0
        key1 = key1 + W1
    return c0, c1, c2, c3


@triton.jit
def draw(call, stream):
    """The four words of uint32 calls, which are counted from the stream's first and do not cross 2**32."""
    first, step, param, key0, key1 = stream
    high = (first >> 32).to(tl.uint32) | (ELEMENTS << 24)
    return philox4x32(first.to(tl.uint32) + call, high, step, param, key0, key1)


@triton.jit
def draw_alone(element, stream):
    """The words of int64 elements, each by a call of its own, by :func:`turned`."""
    _, step, param, key0, key1 = stream
    i = element.to(tl.uint64)
    n = i // TILE * LANES + i % LANES
    row = (i // LANES % ROWS).to(tl.uint32)
    high = (n >> 32).to(tl.uint32) | (ELEMENTS << 24)
    w0, w1, w2, w3 = philox4x32(n.to(tl.uint32), high, step, param, key0, key1)
    word = tl.where(row < 4, tl.where(row < 2, w0, w1), tl.where(row < 6, w2, w3))
    return tl.where(row % 2 == 1, word, turned(word, 0))


@triton.jit
def turned(word, ROW: tl.constexpr):
    """A word with the row's own half on top, which of odd rows it is."""
    if ROW % 2 == 0:
        word = word << 16 | word >> 16
    return word


@triton.jit
def keep_threshold(keep_prob):
    """keep iff bits < threshold; 0 keeps none, 65536 keeps all, everything between keeps some."""
    rounded = (keep_prob * 65536.0 + TWO_52) - TWO_52  # rint
    some = tl.minimum(tl.maximum(rounded, 1.0), 65535.0).to(tl.int32)
    return tl.where(keep_prob >= 1.0, KEEP_ALL, tl.where(keep_prob > 0.0, some, 0))
