"""Loads the native library, which registers ``torch.ops.lrtricks_fused.<rule>_``, and calls its ops."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import reference  # noqa: F401 (enters the records of the rules)
from .call import BESIDE, StepCall
from .copies import copy_back, one_by_one, plain
from .device import prepare_on_device, scalar, squares_on_device, step_on_device
from .host import LIBRARY
from .layouts import fits_one_pass
from .operands import beside, check_operands, is_lazy, is_staged, operands, shares_memory
from .rule import RULES
from .staged import step_staged
from .table import HOST, AddressTable, address_table


def _load() -> str | None:
    """Load the library; None, or the reason why it cannot be used."""
    if not LIBRARY.exists():
        return "the native library is not built (pip install --no-build-isolation .)"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the native library does not load under torch {torch.__version__}: {error}"
    for rule in RULES:
        torch.library.register_fake(f"lrtricks_fused::{rule}_", _fake)
        torch.library.register_fake(f"lrtricks_fused::{rule}_table_", _fake)
    for name in ("lossgrad_", "check_table", "squared_norms_", "table_squared_norms_", "write_clip_"):
        torch.library.register_fake(f"lrtricks_fused::{name}", _fake)
    return None


def _fake(*args: Any, **kwargs: Any) -> None:
    """What a tracer runs: nothing is returned. A tensor on the meta device is no tracer's, and has nothing to step."""
    for argument in (*args, *kwargs.values()):
        for tensor in argument if isinstance(argument, list) else [argument]:
            if isinstance(tensor, Tensor) and tensor.is_meta and not isinstance(tensor, FakeTensor):
                raise NotImplementedError(f"lrtricks_fused: an operand of shape {tuple(tensor.shape)} is on meta")


load_error = _load()


def cuda_archs() -> list[str]:
    """Compute capabilities the native library has kernels for, such as "9.0" or "12.0+PTX"; none without CUDA."""
    return [] if load_error else torch.ops.lrtricks_fused.cuda_archs().split()


def cuda_version() -> int:
    """The CUDA toolkit that the native library is built with, as the driver numbers its own: 13000 is 13.0; 0: none."""
    return 0 if load_error else torch.ops.lrtricks_fused.cuda_version()


def _split(value: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    return (0.0, scalar(value, device)) if isinstance(value, Tensor) else (value, None)


def prepare(call: StepCall) -> None:
    """Checks the operands and finds or makes the table of their addresses; ``native_step`` then takes both as they are.

    Raises:
        ValueError, TypeError, RuntimeError: an operand is not what the kernels take it for.
    """
    if not call.params[0].is_cpu:
        return prepare_on_device(call, _run, torch.ops.lrtricks_fused.upload_, fits_one_pass)
    call.table = address_table(call, takes=_in_one_pass)
    if call.table is not None and not call.alone:
        _refused_by_name(call, torch.ops.lrtricks_fused.check_table, call.table.rows)
    elif call.table is None and not torch.compiler.is_compiling():
        if is_staged(call):
            apart = not (any(map(is_lazy, (*operands(call), *beside(call)))) or shares_memory(call))
            call.staged = not (apart and _in_one_pass(call))
        elif shares_memory(call):
            call.pieces = one_by_one(call)
        elif any(map(is_lazy, operands(call))):
            call.copies = plain(call)
    call.prepared = True


def _in_one_pass(call: StepCall) -> bool:
    """Whether the op itself takes operands that are stored otherwise than they are stepped, if they lie all apart."""
    return fits_one_pass(call) and all(t.is_contiguous() for t in (*operands(call), *beside(call)))


def _beside(call: StepCall) -> list[list[Tensor] | None]:
    """Mirrors, lows and changes as the op takes them: lists of a tensor each, which is empty where there is none."""
    none = torch.empty(0, dtype=torch.uint8, device=HOST)
    columns = [getattr(call.storage, name, None) for name in BESIDE]
    return [[none if t is None else t for t in column] if column else None for column in columns]


def _refused_by_name(call: StepCall, run: Callable[..., None], *args: Any) -> None:
    """``run(*args)``; what an op refuses, it refuses before it writes, and the error is that of all backends."""
    try:
        run(*args)
    except RuntimeError:
        check_operands(call)
        raise


def native_step(call: StepCall) -> None:
    """One fused step by the native op of ``call.rule``.

    On the CPU the op reads any layout; on a GPU strided operands go through contiguous copies.
    """
    if not call.prepared:
        prepare(call)
    if not call.params[0].is_cpu:
        step_on_device(call, _run, torch.ops.lrtricks_fused.upload_, fits_one_pass)
    elif call.staged:
        step_staged(call, native_step)
    elif call.pieces:
        for piece in call.pieces:
            native_step(piece)
    else:
        _refused_by_name(call, _run, call.copies or call, call.table)
        if call.copies is not None:
            copy_back(call.copies, call)
    call.count_versions()  # a graph built before the step must not be used after it


@functools.cache
def _table_op(rule: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.lrtricks_fused, f"{rule}_table_").default  # itself: its packet would look for it each time


def _signed(seed: int) -> int:
    """A seed as a signed 64-bit integer."""
    return seed - (seed >> 63 << 64)


def packed(
    call: StepCall,
    codes: tuple[int, int, int],
    memory: tuple[Tensor | None, ...] = (None,) * 4,
    slices: int = 0,
    partials: int = 0,
    mapped: bool = False,
    staged: bool = False,
) -> tuple[list[int], list[float], list[Tensor]]:
    """What an op over a table takes besides it, in the order in which ``csrc/ops.h`` takes it from three lists.

    Args:
        call: the step.
        codes: of the states that there are, of the parameters' dtype and of the states'.
        memory: on a device: the chunks' tensors, what is prepared, and the scratch of slices and slope.
        slices: of all gradients.
        partials: partial sums of all slices.
        mapped: on a device: whether the kernels need the table's maps, see AddressTable.is_mapped.
        staged: on a device: whether some are stored otherwise than they are stepped.
    """
    rule, hyper, device = RULES[call.rule], call.hyper, call.params[0].device
    given: list[Any] = [call.lr, call.keep_prob, call.grad_weight]
    numbers = [0.0 if isinstance(value, Tensor) else value for value in given]
    there = 0
    tensors: list[Any] = []
    for bit, tensor in enumerate((*memory, *given, call.grad_scale, call.found_inf, call.clip)):
        if isinstance(tensor, Tensor):
            there |= 1 << bit
            tensors.append(tensor if bit < len(memory) else scalar(tensor, device))
    own: list[Any] = [hyper[name] for name in rule.hypers]
    whole: list[int]
    real: list[float]
    whole, real = (own, []) if rule.ring else ([], own)
    flags: list[Any] = [hyper[name] for name in rule.flags]
    common = (call.decoupled_weight_decay, call.maximize, _signed(call.seed))
    lr, keep_prob, grad_weight = numbers
    return (
        [there, *codes, slices, partials, mapped, staged, call.rounds or 0, *whole, *flags, *common],
        [*real, lr, call.weight_decay, keep_prob, grad_weight],
        tensors,
    )


def _arguments(call: StepCall, table: AddressTable) -> tuple[Any, ...]:
    """All that the op over a table takes."""
    scratch = table.slope_scratch() if call.sums is not None and table.prepared is not None else None
    memory = (table.chunk_tensors, table.prepared, table.slice_scratch, scratch)
    sizes = table.slices, table.partials, table.is_mapped, table.staged is not None
    return table.rows, call.sums, *packed(call, table.codes, memory, *sizes)


def _run(call: StepCall, table: AddressTable | None) -> None:
    if table is None:
        return _run_on_lists(call)
    _table_op(call.rule)(*_arguments(call, table))


class TableStep:
    """The step of a prepared call on the CPU by its table, as often as its table and its numbers hold.

    Graphs do not hear of it: versions are the caller's.
    """

    def __init__(self, call: StepCall) -> None:
        self._op, self._arguments = _table_op(call.rule), _arguments(call, call.table)

    def __call__(self) -> None:
        self._op(*self._arguments)


def _run_on_lists(call: StepCall) -> None:
    device = call.params[0].device
    lr, lr_tensor = _split(call.lr, device)
    keep_prob, keep_prob_tensor = _split(call.keep_prob, device)
    grad_weight, grad_weight_tensor = _split(call.grad_weight, device)
    getattr(torch.ops.lrtricks_fused, f"{call.rule}_")(
        call.params,
        call.grads,
        *call.states.values(),
        *call.scalar_states.values(),
        call.steps,
        call.param_indices,
        call.centralize,
        call.sums,
        call.map_integers(),
        *_beside(call),
        call.rounds or 0,
        **call.hyper,
        lr=lr,
        weight_decay=call.weight_decay,
        decoupled_weight_decay=call.decoupled_weight_decay,
        maximize=call.maximize,
        keep_prob=keep_prob,
        grad_weight=grad_weight,
        seed=_signed(call.seed),
        lr_tensor=lr_tensor,
        keep_prob_tensor=keep_prob_tensor,
        grad_weight_tensor=grad_weight_tensor,
        grad_scale=scalar(call.grad_scale, device),
        found_inf=scalar(call.found_inf, device),
        clip=scalar(call.clip, device),
    )


def squares(call: StepCall, out: Tensor) -> None:
    """Writes the squared norms of the gradients of a prepared call, one float64 per parameter, into ``out``."""
    if not call.params[0].is_cpu:
        squares_on_device(call, out, _run_squares)
    elif call.table is not None and call.table.grad_code is not None:
        _run_squares(call, call.table, out)
    else:
        grads = (call.copies or (plain(call) if call.pieces else call)).grads
        _refused_by_name(call, torch.ops.lrtricks_fused.squared_norms_, grads, out)


def _run_squares(call: StepCall, table: AddressTable, out: Tensor) -> None:
    scratch = None if table.chunk_tensors is None else table.slope_scratch()
    torch.ops.lrtricks_fused.table_squared_norms_(table.rows, out, table.chunk_tensors, scratch, table.grad_code)


def clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    """Writes the norm of all gradients, and the factor that takes it to ``max_norm``, see :func:`.reference.clip`."""
    scale = scalar(grad_scale, squares.device)
    torch.ops.lrtricks_fused.write_clip_(squares, norm, factor, scale, max_norm)
