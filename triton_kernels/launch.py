"""Hands a step to the Triton kernels: the table, the scalars, the grid. No arithmetic."""

import ast
import functools
import inspect
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrtricks_fused.step.call import StepCall
from lrtricks_fused.step.device import on, prepare_on_device, scalar, squares_on_device, step_on_device
from lrtricks_fused.step.rule import RULES
from lrtricks_fused.step.storage import STATE_DTYPES, compute_dtype
from lrtricks_fused.step.table import ACCESS, CHUNK, SLOPE_COLUMNS, AddressTable

from . import rules
from .doubles import in_halves, scalars_in_halves
from .prepare import DECOUPLED_WEIGHT_DECAY, MAXIMIZE, prepare_kernel
from .slices import find_means, sum_partials
from .slope import add_columns, sum_chunks, sum_columns
from .squares import find_clip, square_units, sum_tensor_columns, sum_tensors
from .step import Variant, step_kernel
from .upload import upload

WARPS = 4
MOST_THREADS = 256  # of a step
PREPARE_BLOCK = 128
SUM_BLOCK = 128
MEAN_BLOCK = 32  # one warp: slices are few, and each is one thread's loop over its partials
LARGEST_BLOCK = CHUNK // 8  # lanes of a chunk
REGISTERS = 128  # left alone ptxas aims at 72 or 80 for some kernels, and spills; at 96 it spills in three
MANY_REGISTERS = 168  # of three states in float16, whose conversions take more than those of bfloat16: three blocks
SLOPE_REGISTERS = 200  # of a step with a slope; with one, four lanes of a thread are what these hold
SLOPE_LANES = 4
INTERPRETED = triton.knobs.runtime.interpret
DTYPES = {dtype: getattr(tl, str(dtype).removeprefix("torch.")) for dtype in STATE_DTYPES}


class Functions(NamedTuple):
    """Of a rule in rules.py: its constants, their number, and its direction."""

    constants: triton.runtime.JITFunction
    number: int
    direction: triton.runtime.JITFunction


def _results(function: triton.runtime.JITFunction, scalar_states: bool) -> int:
    """How many constants a function of rules.py returns, by the last line of its text.

    Raises:
        TypeError: it does not end with a tuple of them, or with a call of another such function.
    """
    (definition,) = ast.parse(inspect.getsource(function.fn)).body
    value = definition.body[-1].value
    if isinstance(value, ast.Call):
        return _results(getattr(rules, value.func.id), scalar_states)
    constants = value.elts[0] if scalar_states and isinstance(value, ast.Tuple) else value
    if not isinstance(constants, ast.Tuple):
        raise TypeError(f"Invalid {function.fn.__name__}: must end with a tuple of the constants, written out")
    return len(constants.elts)


@functools.cache
def functions_of(rule: str) -> Functions:
    """The functions of a rule, which have its name."""
    constants = getattr(rules, f"{rule}_constants")
    return Functions(constants, _results(constants, bool(RULES[rule].scalar_states)), getattr(rules, rule))


def options(backend: str, warps: int = WARPS, registers: int = REGISTERS) -> dict[str, object]:
    """Of the compiler, for "cuda" or "hip"; no contraction of products and sums."""
    exact = dict(num_warps=warps, num_stages=1, enable_fp_fusion=False)
    return {**exact, "maxnreg": registers} if backend == "cuda" else exact


class Layout(NamedTuple):
    """How the threads of a program share a chunk."""

    warps: int
    block: int  # lanes a pass draws for in a full chunk
    tail_block: int  # the same in others


@functools.cache
def layout_of(dtype: torch.dtype, state_dtype: torch.dtype, warp_size: int, slope: bool = False) -> Layout:
    """In full chunks a pass draws for as many lanes as the threads move in one access each, in others one a thread.

    The wider dtype of the two decides: with more lanes its stores would go through shared memory to stay coalesced.
    There are as many threads as one pass needs, if MOST_THREADS are enough: each pass waits for its first rows.
    Fixed, not tuned: a tuner runs a kernel several times, and this one steps in place.
    """
    lanes = ACCESS // max(dtype.itemsize, state_dtype.itemsize)
    threads = min(LARGEST_BLOCK // lanes, MOST_THREADS)
    if slope:
        lanes, threads = min(lanes, SLOPE_LANES), WARPS * warp_size
    if INTERPRETED:
        return Layout(WARPS, LARGEST_BLOCK, LARGEST_BLOCK)
    return Layout(threads // warp_size, threads * lanes, threads)


def real_of(dtype: torch.dtype) -> tl.dtype:
    """In which a step of parameters of this dtype is computed."""
    return DTYPES[compute_dtype(dtype)]


def prepare_constexprs(rule: str, dtype: torch.dtype) -> dict[str, object]:
    """What an instance of prepare_kernel is compiled for."""
    return dict(
        CONSTANTS=functions_of(rule).constants, SCALAR_STATES=len(RULES[rule].scalar_states), REAL=real_of(dtype),
        BLOCK=PREPARE_BLOCK,
    )  # fmt: skip


@functools.cache
def step_constexprs(
    rule: str,
    flags: tuple[bool, ...],
    states: int,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    warp_size: int,
    centralize: bool = False,
    slope: bool = False,
    mapped: bool = False,
) -> dict[str, object]:
    """What an instance of step_kernel is compiled for.

    ``centralize``: some have slices; ``mapped``: some are shards, or lie in channels_last.
    """
    functions = functions_of(rule)
    layout = layout_of(dtype, state_dtype, warp_size, slope)
    variant = Variant(
        FLAGS=flags, STATES=states, CONSTANTS=functions.number, RING=RULES[rule].ring, PARAM_DTYPE=DTYPES[dtype],
        STATE_DTYPE=DTYPES[state_dtype], REAL=real_of(dtype), CENTRALIZE=centralize, MAPPED=mapped,
        UNIT=ACCESS // dtype.itemsize if slope else 0, BLOCK=layout.block,
        TAIL_BLOCK=layout.tail_block, AHEAD=1, TAIL_AHEAD=8 if dtype.itemsize < 8 else 2,
    )  # fmt: skip
    return dict(DIRECTION=functions.direction, VARIANT=variant)


@functools.cache
def step_options(
    backend: str, dtype: torch.dtype, state_dtype: torch.dtype, states: int, warp_size: int, slope: bool = False
) -> dict[str, object]:
    """Of the compiler, for step_kernel."""
    many = states == 3 and dtype == state_dtype == torch.float16
    registers = SLOPE_REGISTERS if slope else MANY_REGISTERS if many else REGISTERS
    return options(backend, layout_of(dtype, state_dtype, warp_size, slope).warps, registers)


def sum_partials_constexprs(dtype: torch.dtype) -> dict[str, object]:
    """What an instance of sum_partials is compiled for."""
    return dict(STORAGE=DTYPES[dtype], REAL=real_of(dtype), BLOCK=LARGEST_BLOCK if INTERPRETED else SUM_BLOCK)


def find_means_constexprs() -> dict[str, object]:
    """What an instance of find_means is compiled for."""
    return dict(BLOCK=LARGEST_BLOCK if INTERPRETED else MEAN_BLOCK)


def _compiler() -> str:
    return "hip" if torch.version.hip else "cuda"


def _readable(value: float | Tensor, device: torch.device) -> float | Tensor:
    """A tensor that the kernels can read, or a number; of a GPU's step, a tensor on the CPU is read here."""
    if isinstance(value, Tensor):
        value = scalar(value, device)
    return float(value) if isinstance(value, Tensor) and value.is_cpu and device.type != "cpu" else value


def _run(call: StepCall, table: AddressTable) -> None:
    device = call.params[0].device
    scale = 1.0 if call.grad_scale is None else call.grad_scale
    found_inf = 0.0 if call.found_inf is None else call.found_inf
    clip = 1.0 if call.clip is None else call.clip
    given = (call.lr, call.keep_prob, call.grad_weight, scale, found_inf, clip, call.weight_decay)
    scalars = [_readable(value, device) for value in given]  # tensors, too, that must live until the launches
    flags = call.decoupled_weight_decay * DECOUPLED_WEIGHT_DECAY.value | call.maximize * MAXIMIZE.value
    hypers = in_halves([float(call.hyper[name]) for name in RULES[call.rule].hypers])
    tensors, prepared = len(table.rows), table.prepared.view(torch.int64)
    states = [column for column in call.states.values() if column]
    dtype = call.params[0].dtype
    state_dtype = states[0][0].dtype if states else dtype
    scratch = table.slope_scratch() if call.sums is not None else None
    centralize = call.centralize and table.slices != 0
    warp_size = 64 if torch.version.hip else 32
    means = _launch_means(table, dtype) if centralize else 0
    prepare_kernel[(triton.cdiv(tensors, PREPARE_BLOCK),)](
        table.rows, prepared, tensors, scalars_in_halves(scalars), flags, means,
        0 if scratch is None else scratch.data_ptr(), hypers, **prepare_constexprs(call.rule, dtype),
        **options(_compiler()),
    )  # fmt: skip
    if len(table.chunk_tensors):
        step_kernel[(len(table.chunk_tensors),)](
            table.rows, table.chunk_tensors, prepared, call.seed - (call.seed >> 63 << 64),
            **step_constexprs(call.rule, call.variant, len(states), dtype, state_dtype, warp_size,
                              centralize, scratch is not None, table.is_mapped),
            **step_options(_compiler(), dtype, state_dtype, len(states), warp_size, scratch is not None),
        )  # fmt: skip
        if scratch is not None:
            _add_slope(call, table, prepared, scratch)


def _launch_means(table: AddressTable, dtype: torch.dtype) -> int:
    """Launches the kernels of slices.py; the address of the means, for what is launched next."""
    scratch, tensors = table.slice_scratch.view(torch.promote_types(dtype, torch.float32)), len(table.rows)
    partials, means = sum_partials_constexprs(dtype), find_means_constexprs()
    sum_partials[(triton.cdiv(table.partials, partials["BLOCK"]),)](
        table.rows, scratch, tensors, table.partials, **partials, **options(_compiler())
    )
    find_means[(triton.cdiv(table.slices, means["BLOCK"]),)](
        table.rows, scratch, tensors, table.slices, table.partials, **means, **options(_compiler(), warps=1)
    )
    return scratch.data_ptr() + table.partials * scratch.element_size()


def sum_chunks_constexprs(dtype: torch.dtype) -> dict[str, object]:
    """What an instance of sum_chunks is compiled for."""
    return dict(REAL=real_of(dtype), UNIT=ACCESS // dtype.itemsize, BLOCK=SUM_BLOCK)


def _sum_chunks(table: AddressTable, scratch: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums of chunks from those of units; both lie in the scratch."""
    chunks = len(table.chunk_tensors)
    sums = scratch[-8 * (chunks + SLOPE_COLUMNS) :].view(torch.float64)
    sum_chunks[(triton.cdiv(chunks, SUM_BLOCK),)](
        table.rows, table.chunk_tensors, scratch.view(torch.int64), sums, chunks,
        **sum_chunks_constexprs(dtype), **options(_compiler()),
    )  # fmt: skip
    return sums


def _add_slope(call: StepCall, table: AddressTable, prepared: Tensor, scratch: Tensor) -> None:
    chunks, sums = len(table.chunk_tensors), _sum_chunks(table, scratch, call.params[0].dtype)
    sum_columns[(1,)](sums, chunks, **options(_compiler()))
    add_columns[(1,)](sums, chunks, call.sums, prepared, **options(_compiler(), warps=1))


def square_units_constexprs(dtype: torch.dtype, warp_size: int) -> dict[str, object]:
    """What an instance of square_units is compiled for."""
    return dict(STORAGE=DTYPES[dtype], REAL=real_of(dtype), UNIT=ACCESS // dtype.itemsize,
                BLOCK=layout_of(dtype, dtype, warp_size).block)  # fmt: skip


def square_options(backend: str, dtype: torch.dtype, warp_size: int) -> dict[str, object]:
    """Of the compiler, for square_units."""
    return options(backend, layout_of(dtype, dtype, warp_size).warps)


def _run_squares(call: StepCall, table: AddressTable, out: Tensor) -> None:
    dtype, scratch = call.grads[0].dtype, table.slope_scratch()
    chunks, tensors = len(table.chunk_tensors), len(table.rows)
    sums, warp_size = scratch.view(torch.float64), 64 if torch.version.hip else 32
    if chunks:
        square_units[(chunks,)](
            table.rows, table.chunk_tensors, scratch.view(torch.int64),
            **square_units_constexprs(dtype, warp_size), **square_options(_compiler(), dtype, warp_size),
        )  # fmt: skip
        sums = _sum_chunks(table, scratch, dtype)
        sum_tensor_columns[(triton.cdiv(chunks, SUM_BLOCK),)](
            table.rows, table.chunk_tensors, sums, chunks, BLOCK=SUM_BLOCK, **options(_compiler())
        )
    sum_tensors[(triton.cdiv(tensors, SUM_BLOCK),)](
        table.rows, sums, out, tensors, BLOCK=SUM_BLOCK, **options(_compiler())
    )


def squares(call: StepCall, out: Tensor) -> None:
    """Writes the squared norms of a prepared call's gradients into ``out``."""
    squares_on_device(call, out, _run_squares)


def clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    """Writes the norm of all gradients, and the factor that takes it to ``max_norm`` at most."""
    count, device = len(squares) - SLOPE_COLUMNS, squares.device
    scale = 1.0 if grad_scale is None else _readable(grad_scale, device)  # must live until the launch
    with on(device):
        sum_columns[(1,)](squares, count, **options(_compiler()))
        find_clip[(1,)](
            squares, norm, factor, count, scalars_in_halves([scale]), in_halves([max_norm]),
            **options(_compiler(), warps=1),
        )  # fmt: skip


def prepare(call: StepCall) -> None:
    """Checks the operands and puts their addresses onto the device."""
    prepare_on_device(call, _run, upload)


def triton_step(call: StepCall) -> None:
    """One fused step by the Triton kernels."""
    step_on_device(call, _run, upload)
    torch.autograd.graph.increment_version(call.params)
