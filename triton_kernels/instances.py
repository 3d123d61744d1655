"""What the Triton kernels are compiled for: their constants, their threads, and options of the compiler."""

import ast
import functools
import inspect
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lrtricks_fused.step.rule import RULES
from lrtricks_fused.step.storage import STATE_DTYPES, compute_dtype
from lrtricks_fused.step.table import ACCESS, CHUNK

from . import rules
from .step import Variant

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


def sum_chunks_constexprs(dtype: torch.dtype) -> dict[str, object]:
    """What an instance of sum_chunks is compiled for."""
    return dict(REAL=real_of(dtype), UNIT=ACCESS // dtype.itemsize, BLOCK=SUM_BLOCK)


def square_units_constexprs(dtype: torch.dtype, warp_size: int) -> dict[str, object]:
    """What an instance of square_units is compiled for."""
    return dict(STORAGE=DTYPES[dtype], REAL=real_of(dtype), UNIT=ACCESS // dtype.itemsize,
                BLOCK=layout_of(dtype, dtype, warp_size).block)  # fmt: skip


def square_options(backend: str, dtype: torch.dtype, warp_size: int) -> dict[str, object]:
    """Of the compiler, for square_units."""
    return options(backend, layout_of(dtype, dtype, warp_size).warps)
