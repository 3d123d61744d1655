"""What the threads of a launch hold, one lane a thread: registers as arrays, and operands bound to them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .kernels import SIZES, Immediate, Kernel, Operand, Register, Symbol, UnknownPtx
from .memory import Memory
from .races import WARP

Mask = Any  # the lanes that execute: an array of bool, or True for all of them
Execute = Callable[[Mask], None]
ONE = np.ones(1, bool)

DTYPES = {
    **{f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{size}")
       for bits, size in SIZES.items() for kind in "bus"},
    "f32": np.dtype("f4"), "f64": np.dtype("f8"), "f16": np.dtype("u2"), "bf16": np.dtype("u2"),
    "f16x2": np.dtype("u4"), "bf16x2": np.dtype("u4"), "f32x2": np.dtype("u8"), "pred": np.dtype(bool),
}  # fmt: skip
# An address in one of these spaces, when it is a generic one, has this number in its upper half.
WINDOWS = {"param": 1 << 56, "local": 2 << 56, "shared": 3 << 56}
WINDOW_SHIFT = 56


class UndefinedRead(Exception):
    """A register is read in which nothing has been written."""


class Lanes:
    """The threads of ``blocks`` blocks, of ``threads`` each; those of a block are neighbours."""

    contracted = False  # whether what ptxas might contract is executed, too, as it stands

    def __init__(self, kernel: Kernel, blocks: int, threads: int, dynamic_shared: int, memory: Memory) -> None:
        self.kernel, self.blocks, self.threads, self.memory = kernel, blocks, threads, memory
        self.count = blocks * threads
        self.lane = np.arange(self.count)
        self.thread = self.lane % threads
        self.block = self.lane // threads
        self.epoch = np.zeros(self.count, np.int32)  # barriers of the block passed
        self.warp_epoch = np.zeros(self.count, np.int32)  # and of the warp
        self.params = np.zeros(kernel.param_bytes + 16, np.uint8)
        self.local = np.zeros((self.count, -(-kernel.local_bytes // 8) * 8), np.uint8)
        self.static_shared = -(-kernel.shared_bytes // 16) * 16
        self.shared = np.zeros((blocks, -(-(self.static_shared + dynamic_shared) // 16) * 16), np.uint8)
        self.registers = {name: self._make(kind) for name, kind in kernel.registers.items()}
        self.special = {
            "%tid.x": self.thread.astype(np.uint32), "%ctaid.x": self.block.astype(np.uint32),
            "%ntid.x": np.full(self.count, threads, np.uint32), "%nctaid.x": np.zeros(self.count, np.uint32),
            "%laneid": (self.thread % WARP).astype(np.uint32), "%warpid": (self.thread // WARP).astype(np.uint32),
            **{f"%{name}.{axis}": np.full(self.count, "n" in name, np.uint32)
               for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "yz"},
        }  # fmt: skip
        # Of the registers that a static analysis cannot clear (undefined.py): the lanes in which they are defined.
        self.defined: dict[str, np.ndarray] = {}

    def start(self, first_block: int, grid: int, params: np.ndarray) -> None:
        """Other blocks of the same kernel take the lanes."""
        self.special["%ctaid.x"][:] = self.block + first_block
        self.special["%nctaid.x"][:] = grid
        self.params[: len(params)] = params
        for storage in (self.local, self.shared):
            storage[:] = 0xCD
        for lanes in (self.epoch, self.warp_epoch, *self.defined.values()):
            lanes[:] = 0

    def _make(self, kind: str) -> np.ndarray:
        dtype = DTYPES.get(kind)
        if dtype is None:
            raise UnknownPtx(f"register of type .{kind}")
        return np.zeros(self.count, bool if kind == "pred" else f"u{dtype.itemsize}")

    def _special(self, name: str, dtype: np.dtype) -> np.ndarray:
        """A special register, which other blocks will change in its place."""
        if dtype.itemsize != self.special[name].itemsize:
            raise UnknownPtx(f"{name} as {dtype}")
        return self.special[name].view(dtype)

    def _place(self, name: str, dtype: np.dtype) -> np.ndarray:
        """The address of a variable in its space."""
        offsets = {param.name: param.offset for param in self.kernel.params}
        offsets |= self.kernel.shared | self.kernel.local | dict.fromkeys(self.kernel.externs, self.static_shared)
        if name not in offsets:
            raise UnknownPtx(name)
        return np.array([offsets[name]], dtype)

    def read(self, operand: Operand, kind: str) -> np.ndarray:
        """An operand's values, seen as of this type: the low part of a wider register."""
        dtype = DTYPES[kind]
        if isinstance(operand, Immediate):
            return _constant(operand, dtype)
        if isinstance(operand, Symbol):
            known = self._special if operand.name in self.special else self._place
            return known(operand.name, dtype)
        if not isinstance(operand, Register):
            raise UnknownPtx(f"operand {operand}")
        held = self.registers[operand.name]
        if dtype.itemsize > held.itemsize or (dtype.kind == "b") != (held.dtype.kind == "b"):
            raise UnknownPtx(f"{operand.name}, of type .{self.kernel.registers[operand.name]}, as .{kind}")
        return held.view(dtype)[:: held.itemsize // dtype.itemsize]

    def write(self, operand: Operand, kind: str) -> np.ndarray:
        """Where results of this type go. Narrow integers are extended to a wider register."""
        dtype = DTYPES[kind]
        if operand == Symbol("_"):
            return np.zeros(self.count, dtype)
        if not isinstance(operand, Register):
            raise UnknownPtx(f"operand {operand}")
        held = self.registers[operand.name]
        fits = dtype.itemsize == held.itemsize or (dtype.itemsize < held.itemsize and dtype.kind in "iu")
        if not fits or (dtype.kind == "b") != (held.dtype.kind == "b"):
            raise UnknownPtx(f"{operand.name}, of type .{self.kernel.registers[operand.name]}, as .{kind}")
        return held.view(f"{dtype.kind}{held.itemsize}") if dtype.kind != "b" else held


def _constant(operand: Immediate, dtype: np.dtype) -> np.ndarray:
    if operand.is_float:
        if operand.size != dtype.itemsize:
            raise UnknownPtx(f"a constant of {operand.size} bytes as one of {dtype.itemsize}")
        return np.array([operand.value], f"u{dtype.itemsize}").view(dtype)
    if dtype.kind == "b":
        return np.array([operand.value & 1], bool)
    if dtype.kind == "f":
        raise UnknownPtx(f"the integer {operand.value} as a floating-point number")
    return np.array([operand.value & ((1 << 8 * dtype.itemsize) - 1)], f"u{dtype.itemsize}").view(dtype)


def put(out: np.ndarray, value: np.ndarray, mask: Mask) -> None:
    """Writes a value, of any integer type, into the executing lanes."""
    np.copyto(out, value, casting="unsafe", where=mask)


def lanes_of(mask: Mask, count: int) -> np.ndarray:
    """The numbers of the executing lanes."""
    return np.arange(count) if mask is True else np.flatnonzero(mask)
