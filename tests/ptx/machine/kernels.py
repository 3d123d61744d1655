"""A kernel as its text says: registers, variables, and blocks of instructions."""

from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
BRANCHES, ENDS = ("bra",), ("ret", "exit")
BARRIERS = ("bar", "barrier")
# A thread waits at the beginning of such a block for those that it acts with.
WARP_WIDE = ("shfl", "redux", "vote", "match", "stmatrix", "ldmatrix", "activemask", "elect")


class UnknownPtx(Exception):
    """The text holds something of which the machine does not know what it means."""


@dataclass(frozen=True)
class Register:
    """A register by its name, which is unique in the kernel."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or with ``is_float`` the bits of a number of ``size`` bytes."""

    value: int
    size: int = 0

    @property
    def is_float(self) -> bool:
        """Whether ``value`` is the bits of a floating-point number."""
        return self.size != 0


@dataclass(frozen=True)
class Symbol:
    """The address of a parameter or of a variable, or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """What stands in brackets."""

    base: "Register | Immediate | Symbol"
    offset: int


Operand = Register | Immediate | Symbol | Address | tuple


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``opcode`` and its ``modifiers``, of which the last is the type of most."""

    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None
    negated: bool = False

    @property
    def type(self) -> str:
        """The last modifier."""
        return self.modifiers[-1] if self.modifiers else ""


@dataclass
class Block:
    """Instructions one after another, of which only the last may jump. ``waits``: for "warp" or "block"."""

    label: str | None
    instructions: list[Instruction] = field(default_factory=list)
    waits: str | None = None


@dataclass(frozen=True)
class Param:
    """A parameter of a kernel, and where it lies among them."""

    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    """One entry of a PTX text."""

    name: str
    params: list[Param]
    threads: int | None  # that a block may have at most
    exactly: bool  # whether it must have so many
    registers: dict[str, str] = field(default_factory=dict)  # their types
    shared: dict[str, int] = field(default_factory=dict)  # offsets of variables
    local: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    local_bytes: int = 0
    blocks: list[Block] = field(default_factory=list)
    externs: tuple[str, ...] = ()  # shared memory whose size the launch says

    @property
    def param_bytes(self) -> int:
        """Of all parameters."""
        return self.params[-1].offset + self.params[-1].size if self.params else 0

    def instructions(self) -> Iterator[Instruction]:
        """All of them, in the order of the text."""
        for block in self.blocks:
            yield from block.instructions
