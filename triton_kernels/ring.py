"""The update of a rule whose state is a ring of gradients; twin of the ring's kernels in ``csrc``."""

import triton
import triton.language as tl

from .layout import NUMEL
from .storage import from_real, to_real
from .update import decayed_grad, moved_param


@triton.jit
def ring_pitch(row, STATE_DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Elements from a slot of a ring to the next; with ALIGNED, those of a multiple of 16 bytes."""
    pitch = tl.load(row + NUMEL)
    if ALIGNED:
        pitch = tl.multiple_of(pitch, 128 // STATE_DTYPE.primitive_bitwidth)
    return pitch


@triton.jit
def update_ring(
    param, grad, ring_row, pitch, mask, constants, scalars, INCLUDE: tl.constexpr, STATE_DTYPE: tl.constexpr
):
    """The parameter an update would give, by the mean of a ring whose slots of ``pitch`` elements follow each other."""
    slot, filled = constants[0].to(tl.int64), constants[1].to(tl.int64)
    newest = from_real(decayed_grad(param, grad, scalars), STATE_DTYPE)
    tl.store(ring_row + slot * pitch, newest, mask)
    grad = to_real(newest, STATE_DTYPE)
    mean = to_real(tl.load(ring_row, mask), STATE_DTYPE)
    mean = tl.where(slot == 0, grad, mean)  # what this slot held may be read before the store, or after it
    count = constants[1] * 0.0 + 1.0
    for number in range(1, filled):
        count = count + 1.0
        gradient = to_real(tl.load(ring_row + number * pitch, mask), STATE_DTYPE)
        mean = INCLUDE(mean, tl.where(slot == number, grad, gradient), count)
    return moved_param(param, mean, scalars)
