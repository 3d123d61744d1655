"""The one table of what the models assume of GPUs. Nothing here was measured by this project.

Sources. [spec] the vendor's data sheet or white paper: multiprocessors, clock, bandwidth, registers, most warps.
[guide] CUDA C++ Programming Guide, "Arithmetic Instructions" and "Technical Specifications per Compute Capability":
lanes per clock, blocks. [stream] attainable bandwidth: BabelStream's triad as Azure published it (github.com/Azure/
AI-benchmarking-guide); RTX 4090: a read of float4 (github.com/xytpai/nvbench); B200: no such figure was found, 90 % of
the data sheet's, a larger share than any other board's with HBM here, so that the model asks rather too much. [chase]
latency of a load from memory and from the L2 cache, unloaded, by pointer chasing: github.com/te42kyfo/gpu-benches
(A100), github.com/markdewing/AI_kernels (GH200 for H100 and H200, B200, RTX 4090); MI300X: none was found, assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

LAUNCH_CYCLES = 300  # from the end of a block to the first instruction of the next in its place. Assumed; see warps.py
VARIABLE_CYCLES = 30  # result of S2R, LDC, MUFU, conversions, shuffles: what a scoreboard guards but memory. Assumed
OPERAND_CYCLES = 20  # until a store has read its registers. Assumed
GRANULE_BYTES = 1024  # memory serves so much at a time, each in a time of its own; see warps.py

# [guide] results per clock and multiprocessor, of the pipes as NVIDIA's Nsight Compute guide names them: fma fp32,
# fmaheavy products of integers, alu other integers, comparisons and conversions to 16 bits, xu special functions and
# other conversions, lsu loads and stores. fmaheavy is half of fma, which leaves fp32 no less than the issue slots do
# (the A100's fma is all of it; that is not modelled). B200's integers are taken to be as Hopper's.
_AMPERE = {"fma": 64, "fmaheavy": 64, "alu": 64, "fp64": 32, "xu": 16, "lsu": 32}
_ADA = {"fma": 128, "fmaheavy": 64, "alu": 64, "fp64": 2, "xu": 16, "lsu": 32}
_HOPPER = {"fma": 128, "fmaheavy": 64, "alu": 64, "fp64": 64, "xu": 16, "lsu": 32}
_CDNA = {"vector": 64, "scalar": 64, "lsu": 64}  # a wave of 64 takes a SIMD of 16 lanes four cycles


@dataclass(frozen=True)
class Gpu:
    """Public figures of a board.

    Attributes:
        sms: multiprocessors; AMD: compute units.
        gigahertz: boost clock.
        gigabytes_per_second: of the data sheet.
        attainable: gigabytes per second that a triad was seen to move.
        latency_ns: of an unloaded load from memory.
        cache_ns: of a load that the L2 cache serves.
        lanes: that issue per clock and multiprocessor.
        warps, blocks: most that are resident on a multiprocessor.
        registers: of a multiprocessor, 32 bits each.
        shared_bytes: of a multiprocessor.
        pipes: results per clock and multiprocessor.
        warp: lanes of a warp; AMD: of a wave.
    """

    name: str
    sms: int
    gigahertz: float
    gigabytes_per_second: float
    attainable: float
    latency_ns: float
    cache_ns: float
    lanes: int = 128  # 4 warps
    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    shared_bytes: int = 228 << 10
    pipes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType(_HOPPER))
    warp: int = 32

    def memory_ps(self, size: float) -> float:
        """Picoseconds that moving ``size`` bytes takes."""
        return size / self.gigabytes_per_second * 1e3

    def issue_ps(self, instructions: float) -> float:
        """Picoseconds that issuing ``instructions`` of one thread takes."""
        return instructions / (self.sms * self.lanes * self.gigahertz) * 1e3


SCHEDULERS = 4  # of a multiprocessor, each with a quarter of its registers, warps and lanes: [spec] of all boards below
BOARDS = {
    "A100": Gpu("A100 SXM 80 GB", 108, 1.41, 2039, 1700, 404, 150, shared_bytes=164 << 10, pipes=_AMPERE),
    "RTX4090": Gpu("RTX 4090", 128, 2.52, 1008, 921, 252, 117, warps=48, blocks=24, shared_bytes=100 << 10, pipes=_ADA),
    "H100": Gpu("H100 SXM", 132, 1.98, 3350, 2970, 348, 142),
    "H200": Gpu("H200 SXM", 132, 1.98, 4800, 4150, 348, 142),
    "B200": Gpu("B200", 148, 1.965, 8000, 7200, 438, 150),
    "MI300X": Gpu("MI300X", 304, 2.1, 5300, 4090, 340, 120, lanes=64, warps=32, blocks=32, registers=131072,
                  shared_bytes=64 << 10, pipes=_CDNA, warp=64),
}  # fmt: skip
CODE = {"A100": 80, "RTX4090": 80, "H100": 90, "H200": 90, "B200": 100, "MI300X": 942}  # whose machine code it runs
