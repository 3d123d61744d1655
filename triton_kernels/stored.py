"""A parameter between memory and arithmetic, and what lies beside it: see ``step/staged.py``, [note: Storage].

The other half of a master, a mirror, and a bit per element that says whether what is stored has changed.
"""

import triton
import triton.language as tl

from .layout import CHANGES, LOW, MIRROR
from .philox import LANES, ROWS
from .rounding import PARAM_MULTIPLIER, joined, rounded, split
from .storage import from_real, pointer_to, to_real


@triton.jit
def pointers_beside(row, begin, VARIANT: tl.constexpr, ALIGNED: tl.constexpr):
    """To what lies beside a chunk; 0 where nothing does."""
    low, mirror, changes = 0, 0, 0
    if VARIANT.SPLIT:
        low = pointer_to(tl.load(row + LOW), tl.int16, ALIGNED) + begin
    if VARIANT.MIRROR_DTYPE is not None:
        mirror = pointer_to(tl.load(row + MIRROR), VARIANT.MIRROR_DTYPE, ALIGNED) + begin
    if VARIANT.TRACKED:
        changes = pointer_to(tl.load(row + CHANGES), tl.uint8, ALIGNED) + begin // 8
    return low, mirror, changes


@triton.jit
def load_beside(offset, mask, pointers, drops, VARIANT: tl.constexpr):
    """What lies beside a row; a mirror is read to be compared, or where a step ``drops`` elements.

    The bytes of what has changed are read by :func:`add_changes`.
    """
    low, mirror = 0, 0
    if VARIANT.SPLIT:
        low = tl.load(pointers[0] + offset, mask)
    if VARIANT.MIRROR_DTYPE is not None:
        if VARIANT.TRACKED:
            mirror = tl.load(pointers[1] + offset, mask)
        else:
            needed = offset * 0 + drops.to(tl.int32) != 0
            mirror = tl.load(pointers[1] + offset, needed if mask is None else mask & needed)
    return low, mirror


@triton.jit
def real_param(stored, beside, VARIANT: tl.constexpr):
    """The parameter that a step moves: with the other half, if it has one, its master."""
    if VARIANT.SPLIT:
        param = joined(stored, beside[0])
    else:
        param = to_real(stored, VARIANT.PARAM_DTYPE)
    return param


@triton.jit
def differ(a, b, STORAGE: tl.constexpr):
    """Where stored values differ in their bits. bfloat16 comes as these."""
    if STORAGE == tl.float32:
        a, b = a.to(tl.uint32, bitcast=True), b.to(tl.uint32, bitcast=True)
    elif STORAGE == tl.float16:
        a, b = a.to(tl.uint16, bitcast=True), b.to(tl.uint16, bitcast=True)
    return a != b


@triton.jit
def shifted_in(word, flag, BACKWARDS: tl.constexpr):
    """A word with a flag in its next byte. Not an OR of all rows' flags: the compiler would keep these to the end."""
    flag = flag.to(tl.uint32)
    return word << 8 | flag if BACKWARDS else word >> 8 | flag << 24


@triton.jit
def with_flag(flags, flag, ROW: tl.constexpr, BACKWARDS: tl.constexpr):
    """Two words that get a byte for each of a lane's eight rows, in their order, with the flag of the next row."""
    upper, lower = flags
    if ROW < ROWS // 2:
        upper = shifted_in(upper, flag, BACKWARDS)
    else:
        lower = shifted_in(lower, flag, BACKWARDS)
    return upper, lower


@triton.jit
def packed(flags, BLOCK: tl.constexpr):
    """The bytes of BLOCK / 64 tiles' bits, in the order of memory, from the words of :func:`with_flag`."""
    GROUPS: tl.constexpr = BLOCK // 8  # of eight lanes, which share bytes
    place = tl.arange(0, 8)
    upper = tl.sum(tl.reshape(flags[0], [GROUPS, 8]) << place[None, :], axis=1)
    lower = tl.sum(tl.reshape(flags[1], [GROUPS, 8]) << place[None, :], axis=1)
    rows = tl.where(place[None, :] < 4, upper[:, None], lower[:, None]) >> (8 * (place % 4))[None, :]
    tiles = tl.reshape(rows, [BLOCK // LANES, LANES // 8, ROWS])
    return tl.reshape(tl.permute(tiles, (0, 2, 1)), [BLOCK]).to(tl.uint8)


@triton.jit
def add_changes(pointer, flags, block, stepped, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Sets the bits of what a pass has changed, by the words of :func:`with_flag`."""
    byte = block * BLOCK + tl.arange(0, BLOCK)
    mask = None if FULL else byte * 8 < stepped
    before = tl.load(pointer + byte, mask)
    tl.store(pointer + byte, before | packed(flags, BLOCK), mask)


@triton.jit
def store_param(stored, updated, keep, word, offset, mask, pointers, beside, VARIANT: tl.constexpr):
    """Stores an update of a row where it is kept, and what lies beside.

    ``pointers``: to the parameters, and to what lies beside.

    Returns:
        The parameter that it has become, and which elements have changed.
    """
    PARAM_DTYPE: tl.constexpr = VARIANT.PARAM_DTYPE
    MIRROR_DTYPE: tl.constexpr = VARIANT.MIRROR_DTYPE
    low_pointer, mirror_pointer, _ = pointers[1]
    low, mirror = beside
    changed = 0
    if VARIANT.SPLIT:
        new, new_low = split(updated)
        low = tl.where(keep, new_low, low)
        tl.store(low_pointer + offset, low, mask)
    else:
        new = rounded(updated, word, PARAM_MULTIPLIER, PARAM_DTYPE, VARIANT.STOCHASTIC)
    new = tl.where(keep, new, stored)
    tl.store(pointers[0] + offset, new, mask)
    if MIRROR_DTYPE is not None:
        new_mirror = tl.where(keep, from_real(updated, MIRROR_DTYPE), mirror)
        tl.store(mirror_pointer + offset, new_mirror, mask)
    if VARIANT.TRACKED:
        if MIRROR_DTYPE is not None:
            changed = differ(new_mirror, mirror, MIRROR_DTYPE)
        else:
            changed = differ(new, stored, PARAM_DTYPE)
        if mask is not None:
            changed = changed & mask
    return real_param(new, (low, mirror), VARIANT), changed
