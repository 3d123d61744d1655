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
