"""What the machine code of the Triton kernels says: compiled ahead of time, for NVIDIA and AMD, without a GPU.

bench.gpu_model prints it beside the CUDA kernels' figures. Triton is imported where it is used: by worker processes.
"""

import importlib.util
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lrtricks_fused.step.table import CHUNK

from . import amdgcn, elf, sass
from .stored import BF16, BYTES, F32, KINDS, Kind, traffic_bytes
from .triton_ways import Shape, count
from .variants import VARIANTS

DTYPES = {  # of parameters and gradients, of states; names of torch
    "f32": ("float32", "float32"),
    "bf16/f32": ("bfloat16", "float32"),
    "bf16": ("bfloat16", "bfloat16"),
    "f16/f32": ("float16", "float32"),
    "f16": ("float16", "float16"),
    "f64": ("float64", "float64"),
}
MEANS = ("f32", "bf16", "f16", "f64")  # pairs of which the kernels of slices' means have instances of their own
# What is stored otherwise than it is stepped: KINDS and others.
STORED = {
    **KINDS,
    **{f"{name}, changes": replace(KINDS[name], tracked=True) for name in ("offload", "split", "bf16 stoch./f32")},
    "f32, changes": Kind(tracked=True),
    "split, f32 gradients, bf16 states": Kind(BF16, BF16, split=True),
    "f32/bf16 stoch., changes": Kind(state=BF16, grad=BF16, stochastic_states=True, tracked=True),
}
ALL_KINDS = {name: Kind(param, state, param) for name, (param, state) in DTYPES.items()} | STORED
ARCHS = (80, 90, 100, 942)  # 942: gfx942
ALIGNED = [["tt.divisibility", 16]]  # what Triton finds of a pointer that is


@dataclass(frozen=True)
class Reading:
    """A kernel for one target: what the compiler says of it, and what a full chunk executes."""

    text: str  # PTX, or amdgcn
    registers: int  # of a lane
    stack_bytes: int  # or scratch
    shared_bytes: int
    spills: int  # accesses to local memory in the whole kernel; AMD: registers spilled and accesses to scratch
    local_accesses: int = 0  # in the instructions that full chunks execute
    widths: dict[int, int] = field(default_factory=dict)  # accesses to the tensors by their bytes, per pass
    masked: float = 0.0  # instructions per parameter; AMD: without the scalar ones
    unmasked: float = 0.0
    ahead: int = 0  # loads from the tensors before a full chunk's first store
    unaligned: dict[int, int] = field(default_factory=dict)  # the widths where the gradient is not aligned
    tail_ahead: int = 0  # the most loads of single elements without a store among them
    loads: dict[int, int] = field(default_factory=dict)  # of the whole kernel, by their bytes; as the next
    stores: dict[int, int] = field(default_factory=dict)
    section: elf.Section | None = None  # NVIDIA: the kernel's bytes


def why_not() -> str | None:
    """The reason why nothing can be compiled or read here; None if it can."""
    return "triton is not installed" if importlib.util.find_spec("triton") is None else sass.missing_tools()


def _target(arch: int) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", f"gfx{arch}", 64) if arch > 900 else GPUTarget("cuda", arch, 32)


def _compile(
    kernel: Any, constants: dict[str, object], types: Mapping[str, Sequence[str]], arch: int, **options: Any
) -> tuple[Reading, Sequence[sass.Instruction]]:
    """The kernel's own figures, and its instructions."""
    import triton
    from triton.compiler import ASTSource

    from lrtricks_fused.triton_kernels import instances

    target = _target(arch)
    given = options or instances.options(target.backend)
    pointers = [i for i, kind in enumerate(types.values()) if kind[:1] == "*"]
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature, constexprs=constants, attrs={(i,): ALIGNED for i in pointers})
    made = triton.compile(source, target=target, options=given)
    shared = made.metadata.shared
    if target.backend == "hip":
        text = made.asm["amdgcn"]
        code = amdgcn.parse(text, kernel.__name__)
        spills = sum(amdgcn.number(text, f"{kind}_spill_count") for kind in ("vgpr", "sgpr"))
        spills += sum(this.is_local for this in code)
        scratch = amdgcn.number(text, "private_segment_fixed_size")
        return Reading(text, amdgcn.number(text, "vgpr_count"), scratch, shared, spills), code
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(made.asm["cubin"])
        read = sass.read(cubin)[kernel.__name__]
    spills = sum(this.is_local for this in read.code)
    ptx = made.asm["ptx"]
    return Reading(ptx, read.registers, read.stack_bytes, shared, spills, section=read.section), read.code


def kind_of(name: str) -> Any:
    """How one of DTYPES or STORED is stored, as the launcher tells kernels apart."""
    import torch

    from lrtricks_fused.triton_kernels import instances

    told = vars(ALL_KINDS[name])
    return instances.Kind(**{key: getattr(torch, of) if isinstance(of, str) else of for key, of in told.items()})


def _compile_step(
    arch: int, rule: str, dtype: str, centralize: bool, slope: bool, shards: bool = False
) -> tuple[Reading, Sequence[sass.Instruction], Any]:
    """The kernel's own figures, its instructions, and its layout."""
    from lrtricks_fused.triton_kernels import instances, step

    variant, tricks = VARIANTS[rule], (centralize, slope, shards)
    steps = instances.Steps(variant.record.name, variant.states, kind_of(dtype), _target(arch), *tricks)
    given, options = instances.step_constexprs(steps, variant.flags), instances.step_options(steps)
    layout = instances.layout_of(steps)
    types = {"rows": "*i64", "chunk_tensors": "*i32", "prepared": "*i64", "seed": "i64"}
    return *_compile(step.step_kernel, given, types, arch, **options), layout


def is_counted(arch: int, dtype: str) -> bool:
    """Whether it is known what a full chunk executes: of pairs of types, and of KINDS, but not for AMD."""
    return dtype in DTYPES or (dtype in KINDS and arch < 900)


def shape_of(arch: int, rule: str, dtype: str, layout: Any, centralize: bool = False) -> Shape:
    """How a full chunk is laid out, of a pair of types or one of KINDS."""
    threads, kind, traffic = layout.warps * _target(arch).warp_size, ALL_KINDS[dtype], traffic_bytes(rule, dtype)
    mean = max(BYTES[kind.param], BYTES[F32]) if centralize else 0
    return Shape(CHUNK // threads, layout.block // threads, kind.sizes, traffic, mean, kind.rounds)


def read_step(arch: int, rule: str, dtype: str, centralize: bool = False) -> Reading:
    """Compiles step_kernel and reads it."""
    reading, code, layout = _compile_step(arch, rule, dtype, centralize, False)
    try:
        counted = count(code, shape_of(arch, rule, dtype, layout, centralize))
    except sass.UnknownStructure as error:
        raise sass.UnknownStructure(f"{rule}, {dtype}, {arch}: {error}") from None
    return Reading(**{**vars(reading), **counted})


def read_slope_step(arch: int, rule: str, dtype: str, centralize: bool) -> Reading:
    """The same of a step with a slope; of the executed instructions nothing is said."""
    return _compile_step(arch, rule, dtype, centralize, True)[0]


def read_shard_step(arch: int, rule: str, dtype: str) -> Reading:
    """The same of a step with shards among the parameters; of the executed instructions nothing is said."""
    return _compile_step(arch, rule, dtype, False, False, True)[0]


def read_stored_step(arch: int, rule: str, name: str, shards: bool) -> Reading:
    """The same of one of STORED; of the executed instructions where these are counted, and not of shards."""
    reading, code, layout = _compile_step(arch, rule, name, False, False, shards)
    accesses = Counter((this.is_store, this.access_bytes) for this in code if this.access_bytes)
    loads, stores = ({size: n for (kind, size), n in accesses.items() if kind == of} for of in (False, True))
    counted = {}
    if is_counted(arch, name) and not shards:
        counted = count(code, shape_of(arch, rule, name, layout))
    return Reading(**{**vars(reading), **counted, "loads": loads, "stores": stores})


def read_prepare(arch: int, rule: str, dtype: str) -> Reading:
    """Compiles prepare_kernel and reads it; of the executed instructions nothing is said."""
    import torch

    from lrtricks_fused.triton_kernels import instances, prepare

    record = VARIANTS[rule].record
    given = instances.prepare_constexprs(record.name, getattr(torch, DTYPES[dtype][0]))
    types = {"rows": "*i64", "prepared": "*i64", **dict.fromkeys(prepare.NUMBERS, "i64"), "scalars": ("i64",) * 21,
             "hypers": ("i64",) * 2 * len(record.hypers)}  # fmt: skip
    return _compile(prepare.prepare_kernel, given, types, arch)[0]


def read_means(arch: int, kernel: str, dtype: str) -> Reading:
    """The same of sum_partials or find_means."""
    import torch

    from lrtricks_fused.triton_kernels import instances, slices

    real = "*fp64" if dtype == "f64" else "*fp32"
    numbers = {"sum_partials": ("tensors", "partials"), "find_means": ("tensors", "slices", "partials")}[kernel]
    types = {"rows": "*i64", "scratch": real, **dict.fromkeys(numbers, "i64")}
    if kernel == "sum_partials":
        given, warps = instances.sum_partials_constexprs(getattr(torch, DTYPES[dtype][0])), instances.WARPS
    else:
        given, warps = instances.find_means_constexprs(), 1
    return _compile(getattr(slices, kernel), given, types, arch, **instances.options(_target(arch).backend, warps))[0]


def _compiler_not_interpreter() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


@cache
def _pool() -> ProcessPoolExecutor:
    workers, spawn = min(os.cpu_count() or 1, 8), multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_compiler_not_interpreter)


@cache
def step_reading(arch: int, rule: str, dtype: str, centralize: bool = False) -> Future[Reading]:
    """read_step in a process of its own; several are at work at a time."""
    return _pool().submit(read_step, arch, rule, dtype, centralize)


@cache
def slope_reading(arch: int, rule: str, dtype: str, centralize: bool) -> Future[Reading]:
    """The same of read_slope_step."""
    return _pool().submit(read_slope_step, arch, rule, dtype, centralize)


@cache
def shard_reading(arch: int, rule: str, dtype: str) -> Future[Reading]:
    """The same of read_shard_step."""
    return _pool().submit(read_shard_step, arch, rule, dtype)


@cache
def stored_reading(arch: int, rule: str, name: str, shards: bool = False) -> Future[Reading]:
    """The same of read_stored_step."""
    return _pool().submit(read_stored_step, arch, rule, name, shards)


def reading_of(arch: int, rule: str, dtype: str) -> Future[Reading]:
    """Of a pair of types or one of STORED, whole and without more to do."""
    return (step_reading if dtype in DTYPES else stored_reading)(arch, rule, dtype)


@cache
def prepare_reading(arch: int, rule: str, dtype: str) -> Future[Reading]:
    """The same of read_prepare."""
    return _pool().submit(read_prepare, arch, rule, dtype)


@cache
def means_reading(arch: int, kernel: str, dtype: str) -> Future[Reading]:
    """The same of read_means."""
    return _pool().submit(read_means, arch, kernel, dtype)
