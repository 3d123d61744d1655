"""What an instruction of SASS says to the scheduler: stall count, scoreboards that it sets and waits for.

Since Volta the upper half of an instruction's 128 bits holds them: bits 41 to 44 the stall count, 45 the yield flag, 46
to 48 the scoreboard released when the result is written, 49 to 51 the one released when the operands are read (7:
none), 52 to 57 the mask of those waited for first (Jia et al. 2018, arXiv 1804.06826, section 2.1: Volta's layout).
NVIDIA documents none of it; tests/tools/test_bandwidth_model.py holds it against dependencies that the code has.
"""

import re
from dataclasses import dataclass

from .sass import Instruction

SCOREBOARDS = 6
_NONE = 7
_DEPBAR = re.compile(r"SB(\d), 0x([0-9a-f]+)")


@dataclass(frozen=True)
class Scheduling:
    """The decoded bits.

    Attributes:
        stall: cycles until the warp may issue its next instruction.
        write: the scoreboard that is released when the result is there; None: none.
        read: the same when the operands have been read.
        waits: (scoreboard, how many of its latest may still be out), all met before the instruction is issued.
    """

    stall: int
    write: int | None
    read: int | None
    waits: tuple[tuple[int, int], ...]


def decode(encoding: int, instruction: Instruction) -> Scheduling:
    """The scheduling of one instruction; ``encoding`` is the upper half of its bits."""
    bits = encoding >> 41
    write, read, mask = bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
    waits = [(board, 0) for board in range(SCOREBOARDS) if mask >> board & 1]
    if instruction.opcode.startswith("DEPBAR"):
        waits += [(int(board), int(left, 16)) for board, left in _DEPBAR.findall(instruction.operands)]
    return Scheduling(bits & 15, None if write == _NONE else write, None if read == _NONE else read, tuple(waits))
