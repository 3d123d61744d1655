"""Instructions that move, select, compare and convert."""

from collections.abc import Callable
from functools import partial

import numpy as np

from .floats import CANONICAL, REALS, narrowed, widened
from .instructions import compute, instruction, only, operands
from .integers import BITS
from .kernels import Instruction, Operand, UnknownPtx
from .registers import DTYPES, WINDOWS, Execute, Lanes, Mask, put

COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
           "hs": np.greater_equal}  # fmt: skip
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@instruction("mov")
def move(this: Instruction, lanes: Lanes) -> Execute:
    """A value, or parts to a whole, or a whole to its parts."""
    only(this)
    out, source = operands(this, 2)
    if isinstance(out, tuple):
        return _unpack(this, lanes, out, source)
    if isinstance(source, tuple):
        return _pack(this, lanes, out, source)
    return compute(lanes, np.positive if this.type in REALS else lambda x: x, (out, this.type), (source, this.type))


def _part(this: Instruction, parts: tuple[Operand, ...]) -> str:
    bits = 8 * DTYPES[this.type].itemsize // len(parts)
    if this.type[0] != "b" or f"b{bits}" not in BITS:
        raise UnknownPtx(this.text)
    return f"b{bits}"


def _unpack(this: Instruction, lanes: Lanes, outs: tuple[Operand, ...], source: Operand) -> Execute:
    part = _part(this, outs)
    targets = [lanes.write(out, part) for out in outs]
    halves = lanes.read(source, this.type).view(DTYPES[part]).reshape(-1, len(outs))

    def run(mask: Mask) -> None:
        values = halves.copy()  # the whole may be one of the outs
        for k, target in enumerate(targets):
            put(target, values[:, k], mask)

    return run


def _pack(this: Instruction, lanes: Lanes, out: Operand, sources: tuple[Operand, ...]) -> Execute:
    part, whole = _part(this, sources), DTYPES[this.type]
    bits = 8 * DTYPES[part].itemsize

    def function(*parts: np.ndarray) -> np.ndarray:
        return sum(value.astype(whole) << np.array(bits * k, whole) for k, value in enumerate(parts))

    return compute(lanes, function, (out, this.type), *((source, part) for source in sources))


@instruction("cvta")
def to_generic(this: Instruction, lanes: Lanes) -> Execute:
    """An address in a space to a generic one, and with .to back."""
    *back, space, _ = this.modifiers
    if back not in ([], ["to"]) or this.type != "u64" or space not in ("global", *WINDOWS):
        raise UnknownPtx(this.text)
    window = np.array([WINDOWS.get(space, 0)], np.uint64)
    out, source = operands(this, 2)
    function = np.subtract if back else np.add
    return compute(lanes, lambda address: function(address, window), (out, "u64"), (source, "u64"))


@instruction("selp")
def select(this: Instruction, lanes: Lanes) -> Execute:
    """The first where the predicate holds, else the second."""
    only(this)
    out, first, second, predicate = operands(this, 4)
    kind = f"b{8 * DTYPES[this.type].itemsize}" if this.type in REALS else this.type
    return compute(lanes, lambda a, b, p: np.where(p, a, b), (out, kind), (first, kind), (second, kind),
                   (predicate, "pred"))  # fmt: skip


def comparison(name: str, kind: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """By its name and type. Of floating-point numbers, ordered ones hold for numbers alone."""
    if kind not in REALS:
        return COMPARE.get(name) if kind in BITS else None
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    if name == "neu":
        return np.not_equal
    if name.endswith("u") and name[:-1] in COMPARE:
        return lambda a, b: COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    return COMPARE.get(name) if name in ("eq", "lt", "le", "gt", "ge") else None


@instruction("setp")
def compare(this: Instruction, lanes: Lanes) -> Execute:
    """A predicate, and its opposite where two are asked for; both combined with another one."""
    name, *combined = this.modifiers[:-1]
    function = comparison(name, this.type)
    if function is None or len(combined) > 1 or not set(combined) <= {*COMBINE}:
        raise UnknownPtx(this.text)
    outs, first, second, *other = operands(this, 3 + len(combined))
    outs = outs if isinstance(outs, tuple) else (outs,)
    a, b = lanes.read(first, this.type), lanes.read(second, this.type)
    if not combined and len(outs) == 1:
        return compute(lanes, function, (outs[0], "pred"), (first, this.type), (second, this.type))
    targets = [lanes.write(out, "pred") for out in outs]
    third = lanes.read(other[0], "pred") if combined else None

    def run(mask: Mask) -> None:
        found = function(a, b)
        both = [found, ~found]
        if third is not None:
            both = [COMBINE[combined[0]](value, third) for value in both]
        for target, value in zip(targets, both, strict=False):
            put(target, value, mask)

    return run


def to_integer(value: np.ndarray, kind: str) -> np.ndarray:
    """Towards zero, clamped to what the type holds; what is not a number as PTX says."""
    dtype = DTYPES[kind]
    limits, whole = np.iinfo(dtype), np.trunc(value)
    above, below = whole >= 2.0 ** (8 * dtype.itemsize - (dtype.kind == "i")), whole < limits.min
    inside = ~(above | below | np.isnan(value))
    result = np.where(inside, whole, 0).astype(dtype)
    nan = 0 if value.itemsize == 4 and dtype.itemsize < 8 else 1 << 8 * dtype.itemsize - 1
    result[above], result[below] = limits.max, limits.min
    result[np.isnan(value)] = np.array([nan], f"u{dtype.itemsize}").view(dtype)
    return result


def to_float(value: np.ndarray) -> np.ndarray:
    """The nearest float32."""
    narrow = value.astype(np.float32)
    return np.where(np.isnan(narrow), CANONICAL[4].view(np.float32), narrow)


def to_double(value: np.ndarray) -> np.ndarray:
    """Exactly."""
    wide = value.astype(np.float64)
    return np.where(np.isnan(wide), CANONICAL[8].view(np.float64), wide)


def conversion(modes: tuple[str, ...], to: str, source: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """What converts, by the modifiers and the two types."""
    if source in BITS and to in BITS and not modes:
        return lambda x: x.astype(DTYPES[to])
    if source in BITS and to in REALS and modes == ("rn",):
        return lambda x: x.astype(DTYPES[to])
    if source in REALS and to in BITS and modes == ("rzi",):
        return partial(to_integer, kind=to)
    table = {
        ((), "f32", "f16"): widened["f16"], ((), "f32", "bf16"): widened["bf16"], ((), "f64", "f32"): to_double,
        (("rn",), "f32", "f64"): to_float, (("rn",), "f16", "f32"): narrowed["f16"],
        (("rn",), "bf16", "f32"): narrowed["bf16"],
    }  # fmt: skip
    return table.get((modes, to, source))


@instruction("cvt")
def convert(this: Instruction, lanes: Lanes) -> Execute:
    """Between types; with .rn two numbers to a pair of 16 bits each, the first into the upper half."""
    if len(this.modifiers) < 2:
        raise UnknownPtx(this.text)
    *modes, to, source = this.modifiers
    if to in ("f16x2", "bf16x2") and modes == ["rn"] and source == "f32":
        out, high, low = operands(this, 3)
        narrow = narrowed[to.removesuffix("x2")]

        def pair(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return narrow(a).astype(np.uint32) << np.uint32(16) | narrow(b)

        return compute(lanes, pair, (out, "b32"), (high, "f32"), (low, "f32"))
    function = conversion(tuple(modes), to, source)
    if function is None:
        raise UnknownPtx(this.text)
    out, value = operands(this, 2)
    return compute(lanes, function, (out, to), (value, source))
