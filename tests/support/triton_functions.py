"""Triton functions of the tests' own; imported only where a test runs, because it imports triton."""

import triton
import triton.language as tl

from lrtricks_fused.triton_kernels.doubles import from_halves
from lrtricks_fused.triton_kernels.philox import LANES, ROWS, TILE
from lrtricks_fused.triton_kernels.rounding import joined, split, stochastically_rounded
from lrtricks_fused.triton_kernels.step import row_number
from lrtricks_fused.triton_kernels.stored import add_changes, with_flag


@triton.jit
def store_doubles(out, halves):
    """Doubles that came in a tuple, to memory."""
    values = from_halves(halves)
    for k in tl.static_range(len(values)):
        tl.store(out + k, values[k])


@triton.jit
def fading_constants(rate, step, weight):
    """Those of the rule that test_scalar_states.py steps."""
    weight = weight * rate
    return (weight, 1.0 / (weight + step)), (weight,)


@triton.jit
def fading(grad, states, constants, FLAGS: tl.constexpr):
    """Its direction."""
    weight, inv_divisor = constants
    exp_avg = weight * states[0] + grad
    return exp_avg * inv_divisor, (exp_avg,)


@triton.jit
def round_stochastically(reals, bits, out, STORAGE: tl.constexpr, COUNT: tl.constexpr):
    """float32 by their bits to the bits of 16-bit numbers."""
    i = tl.arange(0, COUNT)
    stored = stochastically_rounded(tl.load(reals + i), tl.load(bits + i).to(tl.uint32), STORAGE)
    tl.store(out + i, stored.to(tl.int16, bitcast=True))


@triton.jit
def split_and_join(masters, high, low, joint, COUNT: tl.constexpr):
    """Masters to their halves, and these to masters."""
    i = tl.arange(0, COUNT)
    upper, lower = split(tl.load(masters + i))
    tl.store(high + i, upper.to(tl.int16, bitcast=True))
    tl.store(low + i, lower)
    tl.store(joint + i, joined(upper, lower))


@triton.jit
def add_bits(flags, out, stepped, BLOCK: tl.constexpr, FULL: tl.constexpr, BACKWARDS: tl.constexpr):
    """Flags of elements to bits of bytes; of the first ones, unless FULL."""
    call = tl.arange(0, BLOCK)
    lane = call // LANES * TILE + call % LANES
    of_lanes = (tl.zeros_like(call).to(tl.uint32), tl.zeros_like(call).to(tl.uint32))
    for k in tl.static_range(ROWS):
        flag = tl.load(flags + lane + row_number(k, BACKWARDS) * LANES)
        of_lanes = with_flag(of_lanes, flag, row_number(k, BACKWARDS), BACKWARDS)
    add_changes(out, of_lanes, 0, stepped, FULL, BLOCK)
