"""Reads the machine code of a kernel (nvdisasm's text): its loops, its accesses, the instructions a normal value takes.

Nothing here knows an optimizer; gpu_model.py asks the questions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_SECTION = re.compile(r"\s*\.section\s+\.text\.([^,\s]+)")
_OTHER_SECTION = re.compile(r"\s*\.section\s")
_LABEL = re.compile(r"([.$\w]+):\s*$")
_ADDRESS = re.compile(r"\s*/\*[0-9a-f]{4,}\*/")
_INSTRUCTION = re.compile(_ADDRESS.pattern + r"\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([^)]*)\)")
_GLOBAL = re.compile(r"(?:LD|ST)G?\.")  # LD and ST: generic addresses
_WIDTH = re.compile(r"\.(?:[US])?(8|16|64|128|256)(?=\.|$)")


class UnknownStructure(Exception):
    """The machine code does not look as the analysis expects; its figures would be wrong."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. ``target`` is the index where it may jump, ``guarded`` whether it may also fall through."""

    opcode: str
    operands: str
    guarded: bool
    target: int | None = None

    @property
    def access_bytes(self) -> int:
        """Bytes a thread moves from or to global memory; 0 for any other instruction."""
        if not _GLOBAL.match(self.opcode):
            return 0
        width = _WIDTH.search(self.opcode)
        return int(width[1]) // 8 if width else 4


    @property
    def is_local(self) -> bool:
        """Whether it accesses local memory: spilled registers, or an array that has no register."""
        return self.opcode.split(".")[0] in ("LDL", "STL")


@dataclass(frozen=True)
class Loop:
    """Instructions ``head`` to ``end``, whose last one jumps back."""

    head: int
    end: int

    def contains(self, other: "Loop") -> bool:
        """Whether ``other`` lies inside and is another one."""
        return self != other and self.head <= other.head and other.end <= self.end


@dataclass
class _Function:
    lines: list[tuple[str, str, str]] = field(default_factory=list)  # guard, opcode, operands
    labels: dict[str, int] = field(default_factory=dict)

    def instructions(self) -> list[Instruction]:
        return [self._instruction(*line) for line in self.lines]

    def _instruction(self, guard: str, opcode: str, operands: str) -> Instruction:
        base, target = opcode.split(".")[0], _TARGET.search(operands)
        if base in ("BRX", "JMP", "JMX", "BRXU", "JMXU"):
            raise UnknownStructure(f"a jump to a place not known in advance: {opcode} {operands}")
        # A call to a label inside the kernel never returns: sm_80 leaves loops so.
        if base == "BRA" or (base == "CALL" and target and target[1].startswith(".L_")):
            if not target or target[1] not in self.labels:
                raise UnknownStructure(f"a branch to no label: {opcode} {operands}")
            guarded = bool(guard) or bool(_TARGET.sub("", operands).strip(" ,"))  # BRA !UP0, `(.L_x_1)
            return Instruction("BRA", operands, guarded, self.labels[target[1]])
        return Instruction(opcode, operands, bool(guard))


def parse(text: str) -> dict[str, list[Instruction]]:
    """Kernels by their mangled name, from what ``nvdisasm -c`` prints."""
    functions: dict[str, _Function] = {}
    current = None
    for line in text.splitlines():
        if section := _SECTION.match(line):
            current = functions.setdefault(section[1], _Function())
        elif current is None or _OTHER_SECTION.match(line):
            current = None
        elif instruction := _INSTRUCTION.match(line):
            current.lines.append((instruction[1] or "", instruction[2], instruction[3]))
        elif _ADDRESS.match(line):
            raise UnknownStructure(f"not an instruction: {line.strip()}")
        elif label := _LABEL.match(line):
            current.labels[label[1]] = len(current.lines)
    return {name: function.instructions() for name, function in functions.items()}


def loops(code: list[Instruction]) -> list[Loop]:
    """What backward branches close, without the idle loop that ends every kernel."""
    ends: dict[int, int] = {}
    for index, instruction in enumerate(code):
        if instruction.target is not None and instruction.target < index:
            if instruction.target in ends:
                raise UnknownStructure("a loop with two ends")
            ends[instruction.target] = index
    return [Loop(head, end) for head, end in ends.items()]


def nested(code: list[Instruction]) -> list[tuple[Loop, Loop]]:
    """Every loop that holds another, with that other."""
    found = loops(code)
    pairs = [(outer, inner) for outer in found for inner in found if outer.contains(inner)]
    if not pairs or len({loop for pair in pairs for loop in pair}) != 2 * len(pairs):
        raise UnknownStructure(f"not pairs of loops, one in the other: {found}")
    return pairs


def successors(code: list[Instruction], index: int) -> Iterator[int]:
    """Where execution may go on without a call (calls are the slow paths of square root and division)."""
    instruction = code[index]
    base = instruction.opcode.split(".")[0]
    if base in ("CALL", "EXIT", "RET") and not instruction.guarded:
        return
    if instruction.target is not None:
        yield instruction.target
    if instruction.target is None or instruction.guarded:
        yield index + 1


@dataclass(frozen=True)
class Passes:
    """One pass of a loop without calls, as indices of instructions; loops inside it are passed once.

    ``branches`` are those of the longest pass where both ways lead to the loop's end without a call.
    """

    longest: tuple[int, ...]
    shortest: tuple[int, ...]
    branches: tuple[int, ...]


def passes(code: list[Instruction], loop: Loop) -> Passes:
    """The longest and the shortest pass of ``loop`` that makes no call, that is, takes no slow path."""
    longest = {loop.end: (1, -1)}  # index -> instructions from there to the loop's end, next index
    shortest = dict(longest)
    both = set()
    for index in range(loop.end - 1, loop.head - 1, -1):
        ways = {way for way in successors(code, index) if way > index and way in longest}
        if not ways:
            continue
        if len(ways) == 2:
            both.add(index)
        longest[index] = max((longest[way][0] + 1, way) for way in ways)
        shortest[index] = min((shortest[way][0] + 1, way) for way in ways)
    if loop.head not in longest:
        raise UnknownStructure(f"no way through {loop} without a call")
    walked = _walk(longest, loop.head)
    return Passes(walked, _walk(shortest, loop.head), tuple(index for index in walked if index in both))


def _walk(table: dict[int, tuple[int, int]], index: int) -> tuple[int, ...]:
    way = []
    while index != -1:
        way.append(index)
        index = table[index][1]
    return tuple(way)
