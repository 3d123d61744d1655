"""Doubles on their way to a kernel: by their bits, so that another value compiles nothing anew."""

import struct

import triton
import triton.language as tl

# [note: Numbers in a tuple] What ``do_not_specialize`` says of an argument does not hold for the numbers in a tuple:
# Triton compiles anew where one becomes 1, or divisible by 16, or of more than 32 bits. So a double travels there as
# its two halves, each in an odd integer that needs more than 32 bits.
HALF_BASE = 2**33 + 1


def bits(value: float) -> int:
    """The bits of a double as a signed integer."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def in_halves(values: list[float]) -> tuple[int, ...]:
    """Doubles for a tuple; :func:`from_halves` gives them back. See [note: Numbers in a tuple]."""
    halves = struct.unpack(f"<{2 * len(values)}I", struct.pack(f"<{len(values)}d", *values))
    return tuple(HALF_BASE + 2 * half for half in halves)


@triton.jit
def from_halves(halves):
    """The doubles that :func:`in_halves` was given, as a tuple."""
    values = ()
    for k in tl.static_range(len(halves) // 2):
        low, high = (halves[2 * k] >> 1) & 0xFFFFFFFF, (halves[2 * k + 1] >> 1) & 0xFFFFFFFF
        values = values + (double(high << 32 | low),)
    return values


@triton.jit
def double(bits):
    """A double from its bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def number(bits, address, is_double):
    """A double given by its bits, or what is at an address of the device: a double or a float."""
    value = double(bits)
    if address != 0:
        if is_double != 0:
            value = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.float64)))
        else:
            value = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.float32))).to(tl.float64)
    return value
