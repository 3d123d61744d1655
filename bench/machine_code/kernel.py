"""What is read of one kernel, and the GPU that each architecture stands for."""

from dataclasses import dataclass

from .hardware import BOARDS

GPUS = {80: BOARDS["A100"], 90: BOARDS["H100"], 100: BOARDS["B200"], 942: BOARDS["MI300X"]}


@dataclass(frozen=True)
class Kernel:
    """One instantiation of step_kernel, and what its machine code says about a full chunk."""

    arch: int
    rule: str
    dtype: str
    registers: int
    stack_bytes: int
    spills: int  # accesses to local memory in the whole kernel
    local_accesses: int  # local memory, in the instructions that full chunks execute
    accesses: int  # to global memory, in the text of the inner loop
    wide_accesses: int  # those of 128 bits
    masked: float  # instructions per parameter
    unmasked: float
    traffic: int  # least bytes per parameter
    backend: str


def target(arch: int) -> str:
    """The compilers' name of an architecture."""
    return f"gfx{arch}" if arch > 900 else f"sm_{arch}"
