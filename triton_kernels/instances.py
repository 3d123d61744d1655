"""What the Triton kernels are compiled for: their constants, their threads, and options of the compiler."""

import ast
import functools
import inspect
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from lrtricks_fused.step.rule import RULES
from lrtricks_fused.step.storage import DTYPE_CODES, STATE_DTYPES, compute_dtype
from lrtricks_fused.step.table import ACCESS, CHUNK

from . import rules
from .step import Variant
from .storage import INTERPRETED

WARPS = 4
MOST_THREADS = 256  # of a step
PREPARE_BLOCK = 128
SUM_BLOCK = 128
MEAN_BLOCK = 32  # one warp: slices are few, and each is one thread's loop over its partials
LARGEST_BLOCK = CHUNK // 8  # lanes of a chunk
REGISTERS = 128  # left alone ptxas aims at 72 or 80 for some kernels, and spills; at 96 it spills in three
MANY_REGISTERS = 168  # of steps that hold more: three blocks of WARPS warps
SLOPE_REGISTERS = 200  # of a step with a slope
# Of a thread that also sums a slope, or draws for each of its elements, as where those of a chunk are scattered, or
# holds words that round beside what is widened from 16 bits: so many the registers hold.
FEW_LANES = 4
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


def is_before_90(target: GPUTarget) -> bool:
    """Whether an NVIDIA GPU is of an older architecture, whose code needs more registers for the same."""
    return target.backend == "cuda" and target.arch < 90


def options(backend: str, warps: int = WARPS, registers: int = REGISTERS) -> dict[str, object]:
    """Of the compiler, for "cuda" or "hip"; no contraction of products and sums."""
    exact = dict(num_warps=warps, num_stages=1, enable_fp_fusion=False)
    return {**exact, "maxnreg": registers} if backend == "cuda" else exact


class Layout(NamedTuple):
    """How the threads of a program share a chunk."""

    warps: int
    block: int  # lanes a pass draws for in a full chunk
    tail_block: int  # the same in others
    registers: int  # of a thread, where the compiler asks


class Kind(NamedTuple):
    """How the tensors are stored that an instance of step_kernel steps."""

    param: torch.dtype
    state: torch.dtype
    grad: torch.dtype
    mirror: torch.dtype | None = None  # of what the parameter's rounding is written to, too
    split: bool = False  # whether parameters are halves of float32 masters
    tracked: bool = False  # whether a bit per element says what has changed
    stochastic: bool = False  # whether 16-bit parameters are rounded so, as the next says of states
    stochastic_states: bool = False
    alone: bool = True  # whether there are no others in the list, of other gradients or mirrors

    @property
    def lanes(self) -> int:
        """Elements of a thread's access, to the widest operand of 16 bytes."""
        return ACCESS // max(self.param.itemsize, self.state.itemsize, self.grad.itemsize)

    @property
    def rounds(self) -> bool:
        """Whether something is rounded stochastically."""
        return self.stochastic or self.stochastic_states

    @property
    def tail_ahead(self) -> int:
        """Rows whose loads the registers hold, a lane a thread."""
        return 2 if self.param.itemsize == 8 else 4 if self.tracked or self.rounds else 8

    @property
    def codes(self) -> tuple[int, int]:
        """What the table has of the gradient's and the mirror's dtype."""
        return DTYPE_CODES[self.grad], 0 if self.mirror is None else DTYPE_CODES[self.mirror]


@functools.cache
def kinds_of(
    param: torch.dtype, state: torch.dtype, staged: frozenset[tuple[int, ...]] | None, rounds: int
) -> tuple[Kind, ...]:
    """The kinds of a list's tensors, each of which takes a launch.

    Args:
        param: dtype of the parameters.
        state: dtype of the states.
        staged: of AddressTable.
        rounds: of StepCall.
    """
    if staged is None:
        return (Kind(param, state, param),)
    split, tracked = any(low for _, low, *_ in staged), any(changes for _, _, changes, *_ in staged)
    dtypes = list(DTYPE_CODES)
    stochastic = bool(rounds & 1) and param.itemsize == 2 and not split
    stored = dict(split=split, tracked=tracked, stochastic=stochastic,
                  stochastic_states=bool(rounds & 2) and state.itemsize == 2)  # fmt: skip
    pairs = sorted({kind[-2:] for kind in staged})
    return tuple(
        Kind(param, state, dtypes[grad], dtypes[mirror] if mirror else None, alone=len(pairs) == 1, **stored)
        for grad, mirror in pairs
    )


class Steps(NamedTuple):
    """What an instance of step_kernel steps."""

    rule: str
    states: int
    kind: Kind
    target: GPUTarget
    centralize: bool = False  # whether some tensors have slices
    slope: bool = False
    mapped: bool = False  # AddressTable.is_mapped

    @property
    def hold_more(self) -> bool:
        """Whether threads need more registers: for flags of what changes; of three states, for what rounds them.

        Also for means of slices, where no operand is of 32 bits, and before sm_90, where all are of 16, for three
        states, or RAdam's two directions to choose from.
        """
        kind, three = self.kind, self.states == 3
        narrow = kind.param.itemsize == kind.state.itemsize == 2
        rounded = three and (kind.stochastic_states or kind.param == kind.state == torch.float16)
        averaged = self.centralize and (narrow or kind.param.itemsize == 8)
        older = narrow and (three or self.rule == "radam") and is_before_90(self.target)
        return kind.tracked or rounded or averaged or older


@functools.cache
def layout_of(steps: Steps) -> Layout:
    """In full chunks a pass draws for as many lanes as the threads move in one access each, in others one a thread.

    The widest operand decides: with more lanes its stores would go through shared memory to stay coalesced.
    There are as many threads as one pass needs, if MOST_THREADS are enough: each pass waits for its first rows.
    Fixed, not tuned: a tuner runs a kernel several times, and this one steps in place.
    """
    kind, many, warp_size = steps.kind, steps.hold_more, steps.target.warp_size
    lanes = min(kind.lanes, FEW_LANES) if steps.slope or steps.mapped or kind.rounds else kind.lanes
    registers = MANY_REGISTERS if many else REGISTERS
    threads = min(LARGEST_BLOCK // lanes, WARPS * warp_size if many else MOST_THREADS)
    if steps.slope:
        threads, registers = WARPS * warp_size, SLOPE_REGISTERS
    if INTERPRETED.value:
        return Layout(WARPS, LARGEST_BLOCK, LARGEST_BLOCK, registers)
    return Layout(threads // warp_size, threads * lanes, threads, registers)


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
def step_constexprs(steps: Steps, flags: tuple[bool, ...]) -> dict[str, object]:
    """What an instance of step_kernel is compiled for; ``flags`` of the rule's variant."""
    rule, states, kind, _, centralize, slope, mapped = steps
    functions, layout = functions_of(rule), layout_of(steps)
    variant = Variant(
        FLAGS=flags, STATES=states, CONSTANTS=functions.number, RING=RULES[rule].ring, PARAM_DTYPE=DTYPES[kind.param],
        GRAD_DTYPE=DTYPES[kind.grad], STATE_DTYPE=DTYPES[kind.state],
        MIRROR_DTYPE=None if kind.mirror is None else DTYPES[kind.mirror], SPLIT=kind.split, TRACKED=kind.tracked,
        STOCHASTIC=kind.stochastic, STOCHASTIC_STATES=kind.stochastic_states,
        ONLY=None if kind.alone else kind.codes, REAL=real_of(kind.param), CENTRALIZE=centralize, MAPPED=mapped,
        BACKWARDS=kind.rounds,
        UNIT=ACCESS // kind.param.itemsize if slope else 0, BLOCK=layout.block,
        TAIL_BLOCK=layout.tail_block, AHEAD=1, TAIL_AHEAD=kind.tail_ahead,
    )  # fmt: skip
    return dict(DIRECTION=functions.direction, VARIANT=variant)


@functools.cache
def step_options(steps: Steps) -> dict[str, object]:
    """Of the compiler, for step_kernel."""
    layout = layout_of(steps)
    return options(steps.target.backend, layout.warps, layout.registers)


def compiler() -> str:
    """The backend of Triton that compiles here."""
    return "hip" if torch.version.hip else "cuda"


def total_constexprs(backend: str) -> dict[str, object]:
    """What add_columns and find_clip are compiled for: on AMD's GPUs scalar registers hold what they read at once."""
    return dict(BATCH=51 if backend == "cuda" else 5)  # which divide one less than the columns


def words_constexprs(backend: str) -> dict[str, object]:
    """What write_words is compiled for: on AMD's GPUs one program, or the words of all would be kept in registers."""
    return dict(SHARED=backend == "cuda")


def sum_partials_constexprs(dtype: torch.dtype) -> dict[str, object]:
    """What an instance of sum_partials is compiled for."""
    return dict(STORAGE=DTYPES[dtype], REAL=real_of(dtype), BLOCK=LARGEST_BLOCK if INTERPRETED.value else SUM_BLOCK)


def find_means_constexprs() -> dict[str, object]:
    """What an instance of find_means is compiled for."""
    return dict(BLOCK=LARGEST_BLOCK if INTERPRETED.value else MEAN_BLOCK)


def sum_chunks_constexprs(dtype: torch.dtype) -> dict[str, object]:
    """What an instance of sum_chunks is compiled for."""
    return dict(REAL=real_of(dtype), UNIT=ACCESS // dtype.itemsize, BLOCK=SUM_BLOCK)


def _layout_of_squares(dtype: torch.dtype, target: GPUTarget) -> Layout:
    return layout_of(Steps("", 0, Kind(dtype, dtype, dtype), target))  # as of a rule without states


def square_units_constexprs(dtype: torch.dtype, target: GPUTarget) -> dict[str, object]:
    """What an instance of square_units is compiled for."""
    return dict(STORAGE=DTYPES[dtype], REAL=real_of(dtype), UNIT=ACCESS // dtype.itemsize,
                BLOCK=_layout_of_squares(dtype, target).block)  # fmt: skip


def square_options(dtype: torch.dtype, target: GPUTarget) -> dict[str, object]:
    """Of the compiler, for square_units."""
    return options(target.backend, _layout_of_squares(dtype, target).warps)
