"""Triton functions of the tests' own; imported only where a test runs, because it imports triton."""

import triton
import triton.language as tl

from lrtricks_fused.triton_kernels.doubles import from_halves


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
