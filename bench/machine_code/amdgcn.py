"""Reads the machine code of a kernel for AMD's GPUs, the assembler text that Triton keeps, in the terms of sass.py."""

import re
from dataclasses import dataclass, replace

from .sass import Instruction, UnknownStructure, successors

_LABEL = re.compile(r"([.$\w]+):")
_INSTRUCTION = re.compile(r"\t([a-z]\w*)\s*(.*)")
_ACCESS = re.compile(r"(?:buffer|global|flat)_(?:load|store)_(?:[su]?(byte|short)(?:_d16(?:_hi)?)?|dword(?:x(\d))?)$")
_MEMORY = re.compile(r"(?:buffer|global|flat)_")
_INDIRECT = ("s_setpc_b64", "s_swappc_b64", "s_call_b64", "s_cbranch_g_fork", "s_cbranch_join", "s_cbranch_i_fork")


@dataclass(frozen=True)
class AmdInstruction(Instruction):
    """One instruction of GCN. There are no calls: square roots and divisions are written out, without branches."""

    @property
    def access_bytes(self) -> int:
        """Bytes a lane moves from or to global memory; 0 for scalar loads, which serve a whole wave."""
        if not _MEMORY.match(self.opcode):
            return 0
        access = _ACCESS.match(self.opcode)
        if not access:
            raise UnknownStructure(f"an access of unknown width: {self.opcode}")
        return {"byte": 1, "short": 2}[access[1]] if access[1] else 4 * int(access[2] or 1)

    @property
    def is_store(self) -> bool:
        return "_store_" in self.opcode and bool(self.access_bytes)

    @property
    def is_local(self) -> bool:
        return self.opcode.startswith("scratch_")

    @property
    def is_exit(self) -> bool:
        return self.opcode == "s_endpgm"

    @property
    def is_call(self) -> bool:
        return False

    @property
    def counts(self) -> bool:
        return not self.opcode.startswith("s_")


def parse(text: str, name: str) -> list[AmdInstruction]:
    """The instructions of one kernel."""
    body = re.search(rf"^{name}:(.*?)^\.Lfunc_end", text, re.M | re.S)
    if not body:
        raise UnknownStructure(f"no kernel {name}")
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in body[1].splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(lines)
        elif instruction := _INSTRUCTION.match(line.partition(";")[0].rstrip()):
            lines.append((instruction[1], instruction[2]))
    return in_order([_instruction(opcode, operands, labels) for opcode, operands in lines])


def _instruction(opcode: str, operands: str, labels: dict[str, int]) -> AmdInstruction:
    if opcode in _INDIRECT:
        raise UnknownStructure(f"a jump to a place not known in advance: {opcode} {operands}")
    if not opcode.startswith(("s_branch", "s_cbranch")):
        return AmdInstruction(opcode, operands, False)
    if operands not in labels:
        raise UnknownStructure(f"a branch to no label: {opcode} {operands}")
    return AmdInstruction(opcode, operands, opcode != "s_branch", labels[operands])


def in_order(code: list[AmdInstruction]) -> list[AmdInstruction]:
    """The same, its blocks in an order in which only loops go back: LLVM puts the heads of loops after their bodies.

    Where a block's successor no longer follows, an ``s_branch`` is put in; as a scalar instruction it counts nothing.
    """
    jumps = [i for i, this in enumerate(code) if this.target is not None or this.is_exit]
    starts = sorted({0, *(code[i].target or 0 for i in jumps), *(i + 1 for i in jumps if i + 1 < len(code))})
    ends = dict(zip(starts, [*starts[1:], len(code)], strict=True))
    following = {start: list(successors(code, ends[start] - 1)) for start in starts}
    done, seen, stack = [], {0}, [(0, iter(following[0]))]
    while stack:  # depth first; blocks in the order of leaving, reversed
        start, rest = stack[-1]
        way = next((way for way in rest if way not in seen), None)
        if way is None:
            done.append(stack.pop()[0])
        else:
            seen.add(way)
            stack.append((way, iter(following[way])))
    ordered: list[AmdInstruction] = []
    places: dict[int, int] = {}
    for start, after in zip(done[::-1], [*done[-2::-1], None], strict=True):
        places[start] = len(ordered)
        ordered += code[start : ends[start]]
        if ends[start] in following[start] and ends[start] != after:
            ordered.append(AmdInstruction("s_branch", "", False, ends[start]))
    return [this if this.target is None else replace(this, target=places[this.target]) for this in ordered]


def number(text: str, key: str) -> int:
    """One figure of the kernel's metadata or directives, such as ``vgpr_count`` or ``amdhsa_float_denorm_mode_32``."""
    found = re.findall(rf"^\s*\.{key}:?\s+(\d+)", text, re.M)
    if len(found) != 1:
        raise UnknownStructure(f"{len(found)} values of {key}")
    return int(found[0])
