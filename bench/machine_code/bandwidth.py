"""The share of the attainable bandwidth at which a kernel's machine code can step, by the model of warps.py."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lrtricks_fused.step.table import CHUNK

from . import cuda_model, sass, stored
from .hardware import BOARDS
from .issue import operations
from .trace import Work, trace
from .triton_ways import Shape, parts
from .variants import VARIANTS
from .warps import Launch, Op, Run, occupancy, simulate

ROWS = 8  # of a tile, which one draw serves
MOST_THREADS = 1024  # of a block, where a kernel does not say
_STEP = re.compile(rf"step_kernel<{cuda_model.PLAIN}, (lrt::\w+<[^<>]*>), ([\w:]+), ([\w:]+)\b")

_STAGED = re.compile(r"staged_kernel<false, (lrt::\w+<[^<>]*>)")  # of whole tensors


@dataclass(frozen=True)
class Kernel:
    """A step kernel's code; ``threads`` of a block, None if the code says it; of Triton's how a chunk is laid out."""

    backend: str
    rule: str
    dtype: str
    text: sass.Text
    threads: int | None = None
    shape: Shape | None = None


@dataclass(frozen=True)
class Prediction:
    """What the model says of one kernel on one board."""

    backend: str
    rule: str
    dtype: str
    board: str
    masked: bool
    registers: int
    launch: Launch
    instructions: float  # of a thread per parameter, with all that comes before and after the loops
    run: Run


def step_kernels(texts: dict[str, sass.Text]) -> Iterator[Kernel]:
    """Every CUDA step kernel of the variants, from code by demangled names."""
    rules = {variant.cpp(real): rule for rule, variant in VARIANTS.items() for real in ("float", "double")}
    dtypes = {pair: dtype for dtype, pair in cuda_model.DTYPES.items()}
    for name, text in texts.items():
        found = _STEP.search(name)
        if found and found[1] in rules and (found[2], found[3]) in dtypes:
            yield Kernel("cuda", rules[found[1]], dtypes[found[2], found[3]], text)
        otherwise = _STAGED.search(name)
        if otherwise and otherwise[1] in rules:
            for kind in stored.KINDS:
                yield Kernel("cuda", rules[otherwise[1]], kind, text)


def work(rule: str, dtype: str, threads: int, masked: bool) -> Work:
    """What a thread of a CUDA kernel does to a chunk of a pair of types."""
    param, state = (cuda_model.BYTES[name] for name in cuda_model.DTYPES[dtype])
    elements, states = CHUNK // threads, VARIANTS[rule].states
    return Work(
        loaded=elements * (2 * param + states * state),
        stored=elements * (param + states * state),
        wide=cuda_model.ACCESS,
        masked=masked,
        columns=max(1, elements * param // cuda_model.ACCESS // ROWS),
        calls=cuda_model.ACCESS // param,
    )


def traced(kernel: Kernel, threads: int, masked: bool) -> list[Op]:
    """What a warp issues over a chunk. UnknownStructure if the way through the code cannot be told."""
    if kernel.shape:
        before, body = parts(kernel.text.code, kernel.shape, masked)
        tables = operations(kernel.text, before, cuda_model.ACCESS + 1)
        return [*tables, *operations(kernel.text, body, kernel.shape.narrowest)]
    if kernel.dtype in stored.KINDS:
        way = stored.ways_of(kernel.text, kernel.rule, kernel.dtype, masked).chunk()
    else:
        try:
            way = trace(kernel.text.code, work(kernel.rule, kernel.dtype, threads, masked))
        except sass.UnknownStructure as error:
            raise sass.UnknownStructure(f"{kernel.rule}, {kernel.dtype}, {kernel.text.arch}: {error}") from None
    return operations(kernel.text, way, cuda_model.ACCESS)


def predict(kernel: Kernel, board: str, masked: bool = True) -> Prediction:
    """Runs the model on a board."""
    gpu, text, rule, dtype = BOARDS[board], kernel.text, kernel.rule, kernel.dtype
    threads = kernel.threads or (text.section and text.section.threads()) or MOST_THREADS
    ops = traced(kernel, threads, masked)
    launch = occupancy(gpu, text.registers, threads, text.shared_bytes)
    run = simulate(gpu, launch, ops, CHUNK * stored.traffic_bytes(rule, dtype))
    instructions = len(ops) * threads / CHUNK
    return Prediction(kernel.backend, rule, dtype, board, masked, text.registers, launch, instructions, run)
