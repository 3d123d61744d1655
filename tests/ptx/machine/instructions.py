"""What instructions do, by their opcodes: tables of functions that bind an instruction to the lanes that execute it.

``TABLE`` has one entry per opcode. An entry takes the instruction and the lanes and gives what is called with a mask
whenever a block reaches it.
"""

from collections.abc import Callable, Iterable

import numpy as np

from .kernels import Instruction, Operand, UnknownPtx
from .registers import Execute, Lanes, Mask, put

Bind = Callable[[Instruction, Lanes], Execute]
TABLE: dict[str, Bind] = {}


class Inexact(Exception):
    """An instruction whose bits are not those of IEEE arithmetic, or that ptxas may contract with another."""


def instruction(*opcodes: str) -> Callable[[Bind], Bind]:
    """Enters what binds these opcodes."""

    def enter(bind: Bind) -> Bind:
        TABLE.update(dict.fromkeys(opcodes, bind))
        return bind

    return enter


def bind(this: Instruction, lanes: Lanes) -> Execute:
    """What executes an instruction.

    Raises:
        Inexact: its result is approximate, flushed, or may be contracted.
        UnknownPtx: the machine does not know it, or not with these modifiers.
    """
    for modifier in this.modifiers:
        if modifier in ("approx", "ftz", "full"):
            raise Inexact(f".{modifier}: {this.text}")
    if this.opcode not in TABLE:
        raise UnknownPtx(f"instruction {this.opcode}: {this.text}")
    execute = TABLE[this.opcode](this, lanes)
    return execute if this.guard is None else _guarded(execute, lanes.read(this.guard, "pred"), this.negated)


def _guarded(execute: Execute, guard: np.ndarray, negated: bool) -> Execute:
    def run(mask: Mask) -> None:
        chosen = ~guard if negated else guard
        chosen = chosen & mask
        if chosen.all():
            execute(True)
        elif chosen.any():
            execute(chosen)

    return run


def only(this: Instruction, known: Iterable[str] = ()) -> None:
    """Refuses an instruction with other modifiers than these and its type."""
    for modifier in this.modifiers[:-1]:
        if modifier not in known:
            raise UnknownPtx(f".{modifier} of {this.opcode}: {this.text}")


def compute(
    lanes: Lanes, function: Callable[..., np.ndarray], to: tuple[Operand, str], *sources: tuple[Operand, str]
) -> Execute:
    """An instruction that gives a function of its sources; each operand with its type."""
    out, inputs = lanes.write(*to), [lanes.read(*source) for source in sources]
    if isinstance(function, np.ufunc) and not (out.dtype.kind in "iu" and out.itemsize != inputs[0].itemsize):

        def apply(mask: Mask) -> None:
            function(*inputs, out=out, where=mask, casting="unsafe")

        return apply
    return lambda mask: put(out, function(*inputs), mask)


def operands(this: Instruction, count: int) -> tuple[Operand, ...]:
    """The operands, if they are as many."""
    if len(this.operands) != count:
        raise UnknownPtx(f"{len(this.operands)} operands: {this.text}")
    return this.operands
