"""What is read of one kernel, and the public figures of the GPUs that it is set against."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Public figures of a board: multiprocessors, boost clock, memory bandwidth, lanes that issue per clock."""

    name: str
    sms: int
    gigahertz: float
    gigabytes_per_second: float
    lanes: int = 128  # 4 warps

    def memory_ps(self, size: float) -> float:
        """Picoseconds that moving ``size`` bytes takes."""
        return size / self.gigabytes_per_second * 1e3

    def issue_ps(self, instructions: float) -> float:
        """Picoseconds that issuing ``instructions`` of one thread takes."""
        return instructions / (self.sms * self.lanes * self.gigahertz) * 1e3


GPUS = {
    80: Gpu("A100 SXM 80 GB", 108, 1.41, 2039),
    90: Gpu("H100 SXM", 132, 1.98, 3350),
    100: Gpu("B200", 148, 1.965, 8000),
    942: Gpu("MI300X", 304, 2.1, 5300, lanes=64),
}


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
