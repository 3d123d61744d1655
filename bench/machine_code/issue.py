"""The operations that a warp issues, from the instructions of a trace.

SASS says by its scheduling bits what waits for what. GCN counts: ``s_waitcnt vmcnt(n)`` waits until at most n accesses
to memory are out, ``lgkmcnt(n)`` the same of scalar loads.
"""

import re
from collections.abc import Sequence

from .sass import Instruction, Text, UnknownStructure
from .scheduling import decode
from .warps import Op

_PIPES = (
    ("lsu", re.compile(r"LD|ST|S2R$|SHFL|ATOM|RED")),
    ("xu", re.compile(r"MUFU|F2F(?!P)|F2I|I2F(?!P)|FRND|POPC|FLO|BREV")),
    ("fp64", re.compile(r"D(?:ADD|MUL|FMA|SETP|MNMX)")),
    ("fma", re.compile(r"F(?:ADD|MUL|FMA)|H(?:ADD|MUL|FMA)2")),
    ("fmaheavy", re.compile(r"IMAD|IMUL|IDP")),
    ("alu", re.compile(r"[IFHV]|LOP|SHF|SEL|PRMT|LEA|MOV|PLOP|P2R|R2P")),
)  # the first that matches; none: uniform instructions and branches, which take an issue slot alone


def pipe(opcode: str) -> str:
    """The pipe that an instruction of SASS occupies; "" for none."""
    return next((name for name, pattern in _PIPES if pattern.match(opcode)), "")


def operations(text: Text, way: Sequence[int], wide: int) -> list[Op]:
    """The operations of a trace. Accesses of fewer than ``wide`` bytes read what is shared by many: from the cache."""
    if text.section is None:
        return [op for i in way for op in _of_gcn(text.code[i], wide)]
    made: dict[int, Op] = {}
    for i in {*way}:
        this = text.code[i]
        bits = decode(text.section.encoding(i), this)
        if this.opcode.startswith(("BAR", "SYNCS", "UTMA")):
            raise UnknownStructure(f"not modelled: {this.opcode} {this.operands}")
        size = this.access_bytes if this.access_bytes >= wide else 0
        made[i] = Op(bits.stall, bits.waits, bits.write, bits.read, pipe(this.opcode), size,
                     cached=bool(this.access_bytes) and not size, store=this.is_store)  # fmt: skip
    return [made[i] for i in way]


_COUNTERS = (re.compile(r"vmcnt\((\d+)\)"), re.compile(r"lgkmcnt\((\d+)\)"))
_QUARTER = re.compile(r"v_(?:rcp|rsq|sqrt|mul_lo_u32|mul_hi_[iu]32|mad_[iu]64)")  # of the rate of others
_ISSUE_CYCLES = 4  # between two instructions of a wave: its SIMD's turn comes every fourth cycle


def _of_gcn(this: Instruction, wide: int) -> list[Op]:
    """The operations of an instruction of GCN; memory is board 0, scalar loads are board 1."""
    if this.opcode == "s_waitcnt":
        found = [(board, counter.search(this.operands)) for board, counter in enumerate(_COUNTERS)]
        return [Op(_ISSUE_CYCLES, tuple((board, int(it[1])) for board, it in found if it))]
    if this.access_bytes:
        size = this.access_bytes if this.access_bytes >= wide else 0
        return [Op(_ISSUE_CYCLES, write=0, pipe="lsu", size=size, cached=not size, store=this.is_store)]
    if this.opcode.startswith("s_"):
        loads = this.opcode.startswith(("s_load", "s_buffer_load"))
        return [Op(_ISSUE_CYCLES, write=1 if loads else None, pipe="scalar", cached=loads)]
    return [Op(_ISSUE_CYCLES, pipe="vector")] * (4 if _QUARTER.match(this.opcode) else 1)
