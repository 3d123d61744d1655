"""Instructions on integers and bits."""

from collections.abc import Callable
from functools import partial

import numpy as np

from .instructions import compute, instruction, only, operands
from .kernels import SIZES, Immediate, Instruction, UnknownPtx
from .registers import DTYPES, Execute, Lanes, Mask

DOUBLED = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
BITS = {f"{kind}{bits}" for kind in "bus" for bits in SIZES}
LOW = np.uint64(0xFFFFFFFF)


class DivisionByZero(Exception):
    """An integer is divided by zero, whose result a GPU leaves open."""


def high_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of a product of integers of 64 bits."""
    signed = a.dtype.kind == "i"
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & LOW, x >> 32, y & LOW, y >> 32
    middle = (x0 * y0 >> 32) + (x1 * y0 & LOW) + (x0 * y1 & LOW)
    high = x1 * y1 + (x1 * y0 >> 32) + (x0 * y1 >> 32) + (middle >> 32)
    if signed:
        high = high - np.where(a < 0, y, 0) - np.where(b < 0, x, 0)
    return high.view(a.dtype)


def product(a: np.ndarray, b: np.ndarray, part: str) -> np.ndarray:
    """The low half of a product, the high one, or all of it."""
    if part == "lo":
        return a * b
    if a.itemsize == 8:
        if part == "wide":
            raise UnknownPtx("a product of 128 bits")
        return high_product(a, b)
    whole = a.astype(f"{a.dtype.kind}{2 * a.itemsize}") * b
    return whole if part == "wide" else (whole >> np.array(8 * a.itemsize, whole.dtype)).astype(a.dtype)


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero; 0 where b is."""
    divisor = np.where(b == 0, np.ones_like(b), b)
    found = a // divisor
    rest = a - found * divisor
    return found + ((rest != 0) & ((rest < 0) != (a < 0)))


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of :func:`quotient`: with the sign of a."""
    return a - quotient(a, b) * b


def shift_right(value: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """By amounts that are clamped to the width."""
    width = 8 * value.itemsize
    within = np.minimum(amount, width - 1).astype(value.dtype)
    return np.where((amount >= width) & (value >= 0), 0, value >> within).astype(value.dtype)


def shift_left(value: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """By amounts that are clamped to the width."""
    width = 8 * value.itemsize
    return np.where(amount >= width, 0, value << np.minimum(amount, width - 1).astype(value.dtype)).astype(value.dtype)


def funnel_shift(low: np.ndarray, high: np.ndarray, amount: np.ndarray, left: bool, clamp: bool) -> np.ndarray:
    """The upper half of (high, low) shifted left, or the lower half of it shifted right."""
    both = high.astype(np.uint64) << 32 | low
    by = (np.minimum(amount, 32) if clamp else amount & 31).astype(np.uint64)
    return ((both << by) >> 32 if left else both >> by).astype(np.uint32)


def extract_bits(value: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """``length`` bits from a position on; what is beyond them, or beyond the value, is their highest one if signed."""
    width, unsigned = 8 * value.itemsize, np.dtype(f"u{value.itemsize}")
    position, length, bits = (position & 0xFF).astype(int), (length & 0xFF).astype(int), value.view(unsigned)
    there = np.clip(np.minimum(length, width - position), 0, width)
    mask = ~shift_left(np.full(1, ~unsigned.type(0)), there)
    field = shift_right(bits, position) & mask
    if value.dtype.kind == "u":
        return field
    top = np.clip(position + length - 1, 0, width - 1)
    negative = (shift_right(bits, top) & unsigned.type(1) == 1) & (length > 0)
    return np.where(negative, field | ~mask, field).view(value.dtype)


def insert_bits(field: np.ndarray, into: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The lowest ``length`` bits of a field in the place of those from a position on, as far as there are such."""
    ones = np.full(1, ~into.dtype.type(0))
    position, length = position & np.uint32(0xFF), length & np.uint32(0xFF)
    mask = shift_left(~shift_left(ones, length), position)
    return into & ~mask | shift_left(field, position) & mask


def permute_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Each byte of the result is one of the eight of (b, a), or copies of its sign."""
    pair = b.astype(np.uint64) << 32 | a
    result = np.zeros(1, np.uint32)
    for k in range(4):
        chosen = selector >> 4 * k & 15
        byte = (pair >> (8 * (chosen & 7)).astype(np.uint64) & 0xFF).astype(np.uint32)
        byte = np.where(chosen & 8, np.where(byte & 0x80, 0xFF, 0), byte).astype(np.uint32)
        result = result | byte << np.uint32(8 * k)
    return result


def lookup(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The function of three bits that ``table`` tabulates, of every bit."""
    result = np.zeros_like(a)
    for k in range(8):
        if int(table[0]) >> k & 1:
            result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return result


SAME_TYPE: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    "add": (np.add, 2), "sub": (np.subtract, 2), "and": (np.bitwise_and, 2), "or": (np.bitwise_or, 2),
    "xor": (np.bitwise_xor, 2), "not": (np.invert, 1), "neg": (np.negative, 1), "abs": (np.absolute, 1),
    "min": (np.minimum, 2), "max": (np.maximum, 2),
}  # fmt: skip


def same_type(this: Instruction, lanes: Lanes) -> Execute:
    """All operands have the instruction's type."""
    only(this)
    function, sources = SAME_TYPE[this.opcode]
    out, *given = operands(this, 1 + sources)
    if this.type not in BITS and this.type != "pred":
        raise UnknownPtx(this.text)
    return compute(lanes, function, (out, this.type), *((operand, this.type) for operand in given))


for _opcode in ("and", "or", "xor", "not"):
    instruction(_opcode)(same_type)


@instruction("mad")
def multiply(this: Instruction, lanes: Lanes) -> Execute:
    """mul (which arithmetic.py hands over where it is one of integers) and mad: of the low half, the high one, all."""
    part, *rest = this.modifiers
    if part not in ("lo", "hi", "wide") or len(rest) != 1 or this.type not in BITS:
        raise UnknownPtx(this.text)
    whole = DOUBLED.get(this.type, "") if part == "wide" else this.type
    out, a, b, *c = operands(this, 3 if this.opcode == "mul" else 4)

    def function(x: np.ndarray, y: np.ndarray, *z: np.ndarray) -> np.ndarray:
        return sum(z, product(x, y, part))

    return compute(lanes, function, (out, whole), (a, this.type), (b, this.type), *((operand, whole) for operand in c))


@instruction("rem")
def divide(this: Instruction, lanes: Lanes) -> Execute:
    """div (handed over by arithmetic.py) and rem."""
    only(this)
    out, a, b = operands(this, 3)
    divisor = lanes.read(b, this.type)
    function = quotient if this.opcode == "div" else remainder
    execute = compute(lanes, function, (out, this.type), (a, this.type), (b, this.type))

    def checked(mask: Mask) -> None:
        if ((divisor == 0) & mask).any():
            raise DivisionByZero(this.text)
        execute(mask)

    return checked


@instruction("shl", "shr")
def shift(this: Instruction, lanes: Lanes) -> Execute:
    """The amount is of 32 bits, whatever is shifted."""
    only(this)
    out, value, amount = operands(this, 3)
    function, fast = (shift_left, np.left_shift) if this.opcode == "shl" else (shift_right, np.right_shift)
    if isinstance(amount, Immediate) and 0 <= amount.value < 8 * DTYPES[this.type].itemsize:
        return compute(lanes, fast, (out, this.type), (value, this.type), (amount, this.type))
    return compute(lanes, function, (out, this.type), (value, this.type), (amount, "u32"))


@instruction("shf")
def funnel(this: Instruction, lanes: Lanes) -> Execute:
    """shf.l and shf.r, of 32 bits."""
    direction, mode, _ = this.modifiers
    if direction not in "lr" or mode not in ("wrap", "clamp") or this.type != "b32":
        raise UnknownPtx(this.text)
    out, *given = operands(this, 4)
    function = partial(funnel_shift, left=direction == "l", clamp=mode == "clamp")
    return compute(lanes, function, (out, "b32"), *((operand, "u32") for operand in given))


@instruction("bfe")
def bit_field(this: Instruction, lanes: Lanes) -> Execute:
    """Position and length are of 32 bits, of which the lower eight count."""
    only(this)
    out, value, position, length = operands(this, 4)
    return compute(lanes, extract_bits, (out, this.type), (value, this.type), (position, "u32"), (length, "u32"))


@instruction("bfi")
def insert_bit_field(this: Instruction, lanes: Lanes) -> Execute:
    """The other way round."""
    only(this)
    out, field, into, position, length = operands(this, 5)
    bits = ((operand, this.type) for operand in (out, field, into))
    return compute(lanes, insert_bits, *bits, (position, "u32"), (length, "u32"))


@instruction("prmt")
def permute(this: Instruction, lanes: Lanes) -> Execute:
    """In its default mode."""
    only(this)
    out, *given = operands(this, 4)
    return compute(lanes, permute_bytes, (out, "b32"), *((operand, "u32") for operand in given))


@instruction("lop3")
def logic(this: Instruction, lanes: Lanes) -> Execute:
    """Any function of three bits."""
    only(this)
    out, *given = operands(this, 5)
    return compute(lanes, lookup, (out, "b32"), *((operand, "b32") for operand in given))


@instruction("popc")
def count_bits(this: Instruction, lanes: Lanes) -> Execute:
    """How many bits are 1."""
    only(this)
    out, value = operands(this, 2)
    return compute(lanes, lambda bits: np.bitwise_count(bits), (out, "u32"), (value, this.type))
