"""Instructions on floating-point numbers: IEEE, rounded to nearest even, subnormals kept.

A result that is not a number is the canonical one, as a GPU gives it, and not that of the host.
"""

import ctypes
import ctypes.util

import numpy as np

from . import integers
from .instructions import Inexact, compute, instruction, only, operands
from .kernels import Instruction, UnknownPtx
from .registers import Execute, Lanes, Mask

CANONICAL = {4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}
REALS = ("f32", "f64")
PACKED = "f32x2"


def _fma(name: str, kind: type) -> np.ufunc:
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.argtypes, function.restype = [kind] * 3, kind
    return np.frompyfunc(function, 3, 1)


_FMA = {4: _fma("fmaf", ctypes.c_float), 8: _fma("fma", ctypes.c_double)}


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c, rounded once."""
    return _FMA[a.itemsize](a, b, c).astype(a.dtype)


def smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of a number and none, the number; -0 is below 0."""
    first = np.where(a == b, np.signbit(a), (a < b) | np.isnan(b))
    return np.where(first, a, b)


def larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of a number and none, the number; 0 is above -0."""
    first = np.where(a == b, ~np.signbit(a), (a > b) | np.isnan(b))
    return np.where(first, a, b)


def with_sign(sign: np.ndarray, value: np.ndarray) -> np.ndarray:
    """PTX has the operand that gives the sign first."""
    return np.copysign(value, sign)


# Rounded, and so with .rn; then those that are exact.
ROUNDED = {"add": (np.add, 2), "sub": (np.subtract, 2), "mul": (np.multiply, 2), "div": (np.divide, 2),
           "fma": (fused, 3), "sqrt": (np.sqrt, 1), "rcp": (lambda a: np.ones_like(a) / a, 1)}  # fmt: skip
EXACT = {"min": (smaller, 2), "max": (larger, 2)}
PACKABLE = ("add", "sub", "mul", "fma")


def canonical(out: np.ndarray, execute: Execute) -> Execute:
    """The same, and of what is not a number the canonical one."""
    bits, nan = out.view(f"u{out.itemsize}"), CANONICAL[out.itemsize]

    def run(mask: Mask) -> None:
        execute(mask)
        bad = out != out
        if bad.any():
            np.copyto(bits, nan, where=bad & mask)

    return run


@instruction("add", "sub", "mul", "div", "fma", "sqrt", "rcp", "min", "max")
def arithmetic(this: Instruction, lanes: Lanes) -> Execute:
    """Of floating-point numbers; what has an integer type goes to integers.py."""
    if this.type in integers.BITS:
        table = {"mul": integers.multiply, "div": integers.divide}
        return table.get(this.opcode, integers.same_type)(this, lanes)
    if this.opcode in EXACT:
        only(this)
        if this.type not in REALS:
            raise UnknownPtx(this.text)
        return _arithmetic(this, lanes, *EXACT[this.opcode])
    if "rn" not in this.modifiers and not (lanes.contracted and this.modifiers == (this.type,)):
        raise Inexact(f"without .rn, so that ptxas may contract it or choose how to round: {this.text}")
    function, sources = ROUNDED[this.opcode]
    if this.modifiers in (("rn", "f32", "bf16"), ("rn", "f32", "f16")) and this.opcode in ("add", "sub"):
        return _mixed(this, lanes, function)
    only(this, ("rn",))
    if this.type == PACKED and this.opcode in PACKABLE:
        return _packed(this, lanes, function)
    if this.type not in REALS:
        raise UnknownPtx(this.text)
    return _arithmetic(this, lanes, function, sources)


def _arithmetic(this: Instruction, lanes: Lanes, function: np.ufunc, sources: int) -> Execute:
    out, *given = operands(this, 1 + sources)
    execute = compute(lanes, function, (out, this.type), *((operand, this.type) for operand in given))
    return canonical(lanes.write(out, this.type), execute)


def _packed(this: Instruction, lanes: Lanes, function: np.ufunc) -> Execute:
    """Two numbers of 32 bits at once."""
    out, *inputs = (
        array.view(np.float32)
        for array in (lanes.write(this.operands[0], PACKED), *(lanes.read(o, PACKED) for o in this.operands[1:]))
    )
    execute = canonical(out, lambda mask: np.copyto(out, function(*inputs), where=mask))
    return lambda mask: execute(mask if mask is True else np.repeat(mask, 2))


def _mixed(this: Instruction, lanes: Lanes, function: np.ufunc) -> Execute:
    """The first operand is of 16 bits."""
    out, narrow, wide = operands(this, 3)
    widen = widened[this.type]
    execute = compute(lanes, lambda a, b: function(widen(a), b), (out, "f32"), (narrow, this.type), (wide, "f32"))
    return canonical(lanes.write(out, "f32"), execute)


@instruction("neg", "abs")
def sign(this: Instruction, lanes: Lanes) -> Execute:
    """Changes the sign alone, of any bits."""
    if this.type in integers.BITS:
        return integers.same_type(this, lanes)
    only(this)
    if this.type not in REALS:
        raise UnknownPtx(this.text)
    out, value = operands(this, 2)
    bits = this.type.replace("f", "u")
    top = np.array([1 << 8 * CANONICAL[int(bits[1:]) // 8].itemsize - 1], f"u{int(bits[1:]) // 8}")
    function = (lambda a: a ^ top) if this.opcode == "neg" else (lambda a: a & ~top)
    return compute(lanes, function, (out, bits), (value, bits))


@instruction("copysign")
def copy_sign(this: Instruction, lanes: Lanes) -> Execute:
    """The second operand's value with the sign of the first."""
    only(this)
    out, *given = operands(this, 3)
    return compute(lanes, with_sign, (out, this.type), *((operand, this.type) for operand in given))


def from_half(bits: np.ndarray) -> np.ndarray:
    """float16 to float32."""
    return bits.view(np.float16).astype(np.float32)


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    """bfloat16 to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_half(value: np.ndarray) -> np.ndarray:
    """To the nearest float16, ties to even."""
    return np.where(np.isnan(value), np.uint16(0x7FFF), value.astype(np.float16).view(np.uint16))


def to_bfloat(value: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


widened = {"f16": from_half, "bf16": from_bfloat}
narrowed = {"f16": to_half, "bf16": to_bfloat}
