"""Reads the machine code of a kernel (nvdisasm's text): its loops, its accesses, the instructions a normal value takes.

Nothing here knows an optimizer; cuda_model.py and triton_model.py ask the questions. amdgcn.py reads AMD's text.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from . import elf

T = TypeVar("T")
TOOLS = ("cuobjdump", "nvdisasm")

_SECTION = re.compile(r"\s*\.section\s+\.text\.([^,\s]+)")
_OTHER_SECTION = re.compile(r"\s*\.section\s")
_LABEL = re.compile(r"([.$\w]+):\s*$")
_ADDRESS = re.compile(r"\s*/\*[0-9a-f]{4,}\*/")
_INSTRUCTION = re.compile(_ADDRESS.pattern + r"\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([^)]*)\)")
_GLOBAL = re.compile(r"(?:LD|ST)G?\.")  # LD and ST: generic addresses
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_ARCH = re.compile(r"^\s*\.(?:target\s+sm_|headerflags\s+.*?EF_CUDA_SM)(\d+)", re.M)
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
    def is_store(self) -> bool:
        """Whether it writes to global memory."""
        return bool(self.access_bytes) and self.opcode.startswith("ST")

    @property
    def is_local(self) -> bool:
        """Whether it accesses local memory: spilled registers, or an array that has no register."""
        return self.opcode.split(".")[0] in ("LDL", "STL")

    @property
    def is_exit(self) -> bool:
        """Whether the kernel, or a slow path, ends here."""
        return self.opcode.split(".")[0] in ("EXIT", "RET")

    @property
    def is_call(self) -> bool:
        """Whether it enters a slow path of square root or division."""
        return self.opcode.split(".")[0] == "CALL"

    @property
    def counts(self) -> bool:
        """Whether it takes an issue slot of the lanes: all but AMD's scalar instructions."""
        return True


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
        # A slow path, as a call is: a warp whose threads have parted shuffles elsewhere, and comes back.
        if base == "BRA" and "DIV" in opcode.split("."):
            return Instruction(opcode, operands, True)
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


def reached(code: Sequence[Instruction]) -> set[int]:
    """What may be executed outside of slow paths."""
    found: set[int] = set()
    ahead = {0}
    while ahead:
        index = ahead.pop()
        found.add(index)
        onward = {*successors(code, index)} | ({index + 1} if code[index].is_call else set())
        ahead |= {way for way in onward if way < len(code)} - found
    return found


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """What backward branches close, without the idle loop that ends every kernel and what is in slow paths."""
    ends: dict[int, int] = {}
    for index in sorted(reached(code)):
        instruction = code[index]
        if instruction.target is not None and instruction.target < index:
            if instruction.target in ends:
                raise UnknownStructure("a loop with two ends")
            ends[instruction.target] = index
    return [Loop(head, end) for head, end in ends.items()]


def successors(code: Sequence[Instruction], index: int) -> Iterator[int]:
    """Where execution may go on without a call (calls are the slow paths of square root and division)."""
    instruction = code[index]
    if (instruction.is_call or instruction.is_exit) and not instruction.guarded:
        return
    if instruction.target is not None:
        yield instruction.target
    if instruction.target is None or instruction.guarded:
        yield index + 1


def skips_store(code: Sequence[Instruction], branch: int) -> bool:
    """Whether a branch jumps forward over a store to global memory."""
    return any(i.is_store for i in code[branch + 1 : code[branch].target])


@dataclass(frozen=True)
class Passes:
    """Ways from one instruction to another without calls, as indices of instructions; loops are passed once.

    ``branches`` are those of the longest way where both sides lead to its end without a call.
    """

    longest: tuple[int, ...]
    shortest: tuple[int, ...]
    branches: tuple[int, ...]


def passes(code: Sequence[Instruction], loop: Loop) -> Passes:
    """The longest and the shortest pass of ``loop`` that makes no call, that is, takes no slow path."""
    return ways(code, loop.head, loop.end)


def ways(code: Sequence[Instruction], first: int, last: int) -> Passes:
    """The longest and the shortest way from ``first`` to ``last``, both included, that never goes back."""
    longest = {last: (1, -1)}  # index -> instructions from there to the last one, next index
    shortest = dict(longest)
    both = set()
    for index in range(last - 1, first - 1, -1):
        following = {way for way in successors(code, index) if way > index and way in longest}
        if not following:
            continue
        if len(following) == 2:
            both.add(index)
        longest[index] = max((longest[way][0] + 1, way) for way in following)
        shortest[index] = min((shortest[way][0] + 1, way) for way in following)
    if first not in longest:
        raise UnknownStructure(f"no way from {first} to {last} without a call")
    walked = _walk(longest, first)
    return Passes(walked, _walk(shortest, first), tuple(index for index in walked if index in both))


def _walk(table: dict[int, tuple[int, int]], index: int) -> tuple[int, ...]:
    way = []
    while index != -1:
        way.append(index)
        index = table[index][1]
    return tuple(way)


def committed(code: Sequence[Instruction], goals: set[int]) -> int:
    """Where execution, without calls and going back, becomes certain to reach one of ``goals``; one such entry."""
    leads: dict[int, bool | None] = dict.fromkeys(goals, True)  # None: only by a call
    for i in range(max(goals) - 1, -1, -1):
        if i in goals:
            continue
        following = [leads.get(way, False) for way in successors(code, i) if way > i]
        known = [reaches for reaches in following if reaches is not None]
        leads[i] = False if code[i].is_exit else all(known) if known else None
    entries = {way for i, reaches in leads.items() if reaches is False for way in successors(code, i) if leads.get(way)}
    entries |= {0} if leads[0] else set()
    if len(entries) != 1:
        raise UnknownStructure(f"{len(entries)} entries to what leads to {sorted(goals)}")
    return entries.pop()


def exit_after(code: Sequence[Instruction], index: int) -> int:
    """The one place where the kernel ends after ``index``, without calls and loops."""
    reached, ends = {index}, []
    for i in range(index, len(code)):
        if i in reached:
            reached |= {way for way in successors(code, i) if way > i}
            ends += [i] if code[i].is_exit else []
    if len(ends) != 1:
        raise UnknownStructure(f"{len(ends)} exits after {index}")
    return ends[0]


@dataclass(frozen=True)
class Text:
    """A function's instructions, the registers and bytes of memory that ptxas gave it, its architecture and bytes."""

    code: Sequence[Instruction]
    registers: int
    stack_bytes: int
    shared_bytes: int
    arch: int
    section: elf.Section | None  # None: not of a cubin


def find_tool(name: str) -> str | None:
    """The toolkit's cuobjdump or nvdisasm, or the one that triton's wheel ships."""
    triton = importlib.util.find_spec("triton")
    places = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"]]
    if triton and triton.origin:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join(places))


def missing_tools() -> str | None:
    """Which tools are not there, as a sentence; None if all are."""
    missing = [name for name in TOOLS if not find_tool(name)]
    return f"{', '.join(missing)} not found: the CUDA toolkit and triton's wheel have them" if missing else None


def run_tool(name: str, *arguments: str, cwd: str | None = None) -> str:
    """What a tool prints."""
    done = subprocess.run([find_tool(name) or name, *arguments], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{name} {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def usage(cubin: Path) -> dict[str, tuple[int, int, int]]:
    """Registers, bytes of stack and of shared memory of every kernel of a file, by its mangled name."""
    found = re.findall(_USAGE, run_tool("cuobjdump", "-res-usage", str(cubin)))
    return {name: (int(registers), int(stack), int(shared)) for name, registers, stack, shared in found}


def read(cubin: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Text]:
    """The kernels of a file whose mangled names are wanted, by these; what is read takes as long as it is large."""
    sections = {name: section for name, section in elf.kernels(cubin.read_bytes()).items() if wanted(name)}
    if not sections:
        return {}
    given, symbols = usage(cubin), ",".join(str(section.symbol) for section in sections.values())
    printed = run_tool("nvdisasm", "-c", "-fun", symbols, str(cubin))
    arch = _ARCH.search(printed)
    if not arch:
        raise UnknownStructure(f"no architecture in {cubin}")
    codes = parse(printed)
    return {name: Text(codes[name], *given[name], int(arch[1]), section) for name, section in sections.items()}


def demangled(found: dict[str, T]) -> dict[str, T]:
    """The same, by demangled names."""
    return dict(zip(run_tool("c++filt", *found).splitlines(), found.values(), strict=True)) if found else {}
