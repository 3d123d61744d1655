"""Doubles on their way to a kernel: by their bits, so that another value compiles nothing anew."""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# [note: Numbers in a tuple] What ``do_not_specialize`` says of an argument does not hold for the numbers in a tuple:
# Triton compiles anew where one becomes 1, or divisible by 16, or of more than 32 bits. So a double travels there as
# its two halves, each in an odd integer that needs more than 32 bits.
HALF_BASE = 2**33 + 1
IS_FLOAT, IS_DOUBLE = 1, 2  # what lies at the address of a scalar that is a tensor
_FLOAT, _DOUBLE = tl.constexpr(IS_FLOAT), tl.constexpr(IS_DOUBLE)

# [note: Loads that clear their address] Before a load Triton 3.9 clears the register that it loads into, without saying
# so to LLVM: where value and address are both of 64 bits and meet behind a branch, they get one register, and address 0
# is read. Halves of 32 bits have registers of their own.


def in_halves(values: list[float]) -> tuple[int, ...]:
    """Doubles for a tuple; :func:`from_halves` gives them back. See [note: Numbers in a tuple]."""
    halves = struct.unpack(f"<{2 * len(values)}I", struct.pack(f"<{len(values)}d", *values))
    return tuple(HALF_BASE + 2 * half for half in halves)


def scalars_in_halves(values: Sequence[float | Tensor]) -> tuple[int, ...]:
    """Scalars for a tuple, three integers each; :func:`read_scalar` reads them.

    A tensor, one float32 or float64 that the kernel can read, travels as its address, and must live until the launch.
    """
    words: list[int] = []
    for value in values:
        if isinstance(value, Tensor):
            address = value.data_ptr()
            kind = IS_DOUBLE if value.dtype == torch.float64 else IS_FLOAT
            words += (HALF_BASE + 2 * (address & 0xFFFFFFFF), HALF_BASE + 2 * (address >> 32), HALF_BASE + 2 * kind)
        else:
            words += (*in_halves([float(value)]), HALF_BASE)
    return tuple(words)


@triton.jit
def whole(low, high):
    """The 64 bits that two halves of :func:`in_halves` hold."""
    return (high >> 1 & 0xFFFFFFFF) << 32 | (low >> 1 & 0xFFFFFFFF)


@triton.jit
def from_halves(halves):
    """The doubles that :func:`in_halves` was given, as a tuple."""
    values = ()
    for k in tl.static_range(len(halves) // 2):
        values = values + (double(whole(halves[2 * k], halves[2 * k + 1])),)
    return values


@triton.jit
def double(bits):
    """A double from its bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def read_scalar(scalars, k: tl.constexpr):
    """The k-th of :func:`scalars_in_halves`, as a double: the number, or what is at the address."""
    word, kind = whole(scalars[3 * k], scalars[3 * k + 1]), scalars[3 * k + 2] >> 1 & 0xFFFFFFFF
    value = double(word)
    if kind == _DOUBLE:  # see [note: Loads that clear their address]
        halves = word.to(tl.pointer_type(tl.uint32))
        value = double(tl.load(halves + 1).to(tl.uint64) << 32 | tl.load(halves).to(tl.uint64))
    elif kind == _FLOAT:
        value = tl.load(word.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return value
