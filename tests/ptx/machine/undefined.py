"""Registers that may be read before anything is written: found in the text first, so that few are watched."""

from .kernels import BRANCHES, ENDS, Block, Instruction, Kernel, Operand, Register, Symbol


def registers(operands: tuple[Operand, ...]) -> set[str]:
    """The names of all registers in them."""
    found = set()
    for operand in operands:
        if isinstance(operand, Register):
            found.add(operand.name)
        elif isinstance(operand, tuple):
            found |= registers(operand)
        elif hasattr(operand, "base"):
            found |= registers((operand.base,))
    return found


def writes_nothing(this: Instruction) -> bool:
    """Whether all operands are read."""
    return this.opcode in ("st", "stmatrix", "bar", "barrier", "red", *BRANCHES, *ENDS)


def written(this: Instruction) -> set[str]:
    """The registers that the instruction writes."""
    return set() if writes_nothing(this) or not this.operands else registers(this.operands[:1])


def used(this: Instruction) -> set[str]:
    """The registers that the instruction reads, its guard among them."""
    sources = this.operands if writes_nothing(this) else this.operands[1:]
    return registers(sources) | (registers((this.guard,)) if this.guard else set())


def following(blocks: list[Block], labels: dict[str, int]) -> list[list[int]]:
    """Where each block may go on."""
    ways = []
    for k, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        falls = last is None or last.opcode not in (*BRANCHES, *ENDS) or last.guard is not None
        way = [k + 1] if falls and k + 1 < len(blocks) else []
        if last is not None and last.opcode in BRANCHES and isinstance(last.operands[0], Symbol):
            way.append(labels[last.operands[0].name])
        ways.append(way)
    return ways


def suspects(kernel: Kernel, labels: dict[str, int]) -> set[str]:
    """Registers that some way through the kernel reads where it has not, without a guard, written them."""
    ways = following(kernel.blocks, labels)
    certain: list[set[str] | None] = [None] * len(kernel.blocks)  # on entry; None: not reached yet
    certain[0] = set()
    pending = [0]
    while pending:
        k = pending.pop()
        after = set(certain[k])
        for this in kernel.blocks[k].instructions:
            after |= set() if this.guard else written(this)
        for way in ways[k]:
            known = after if certain[way] is None else certain[way] & after
            if known != certain[way]:
                certain[way] = set(known)
                pending.append(way)
    found = set()
    for block, known in zip(kernel.blocks, certain, strict=True):
        there = set(known or ())
        for this in block.instructions:
            found |= used(this) - there if known is not None else set()
            there |= set() if this.guard else written(this)
    return with_copies(kernel, found)


def copied(this: Instruction) -> tuple[str, str] | None:
    """The registers to and from which the instruction only moves a value, whatever it is."""
    if this.opcode != "mov" or not all(isinstance(operand, Register) for operand in this.operands):
        return None
    to, source = (operand.name for operand in this.operands)
    return to, source


def with_copies(kernel: Kernel, found: set[str]) -> set[str]:
    """These registers, and those to which they are copied: a copy of nothing is an error where it is used."""
    pairs = [pair for block in kernel.blocks for this in block.instructions if (pair := copied(this))]
    while more := {to for to, source in pairs if source in found} - found:
        found = found | more
    return found
