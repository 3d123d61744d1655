"""A step through a table of addresses on a device: what the backends of GPUs share."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from .call import Norms, StepCall
from .copies import copy_back, one_by_one, plain, real
from .layouts import Takes, strided
from .operands import check_operands, is_lazy, is_staged, shares_memory
from .staged import measured, step_staged
from .streams import is_capturing
from .table import AddressTable, Upload, address_table
from .untraced import untraced

Run = Callable[[StepCall, AddressTable], None]
_loaded: set[Hashable] = set()  # kernels that have been launched outside captures, by _kernels


def scalar(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """A scalar as the kernels read it: float32 or float64, on their device or on the CPU."""
    if tensor is None:
        return None
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.double()
    # From one GPU to another in stream order; to the CPU, where it is read at once, only after waiting.
    return tensor if tensor.is_cpu else tensor.to(device, non_blocking=device.type != "cpu")


def _kernels(call: StepCall, table: AddressTable, run: Run) -> Hashable:
    """What decides which kernels a call launches, on which device; the table keeps what is asked for."""
    asked = run, call.sums is not None and call.sums.numel(), call.clip is not None, call.rounds
    if asked not in table.kernels:
        table.kernels[asked] = _find_kernels(call, table, *asked)
    return table.kernels[asked]


def _find_kernels(call: StepCall, table: AddressTable, run: Run, *asked: Hashable) -> Hashable:
    states = tuple(column[0].dtype if column else None for column in call.states.values())
    slices = call.centralize and any(map(call.slice_length, call.params))
    variant = call.rule, states, call.variant, slices, *asked, table.is_mapped, table.staged
    return run, call.params[0].device, call.params[0].dtype, *variant


def on(device: torch.device) -> AbstractContextManager:
    """A context in which the device is the current one."""
    return torch.cuda.device(device.index) if device.type == "cuda" else nullcontext()


def _norms(call: StepCall, dtype: torch.dtype) -> Norms:
    """A call of the gradients of one dtype, as they are given: squares are summed in the order of their indices."""
    places = [i for i, grad in enumerate(call.grads) if grad.dtype == dtype]
    given = [call.grads[i] for i in places]
    grads = [real(grad) if is_lazy(grad) or not grad.is_contiguous() else grad for grad in given]
    steps, identities = [call.steps[i] for i in places], [call.param_indices[i] for i in places]
    norms = replace(
        call, params=grads, grads=grads, steps=steps, param_indices=identities, states={}, scalar_states={},
        storage=None, index_maps=None, clip=None, centralize=False, sums=None, tables={}, table=None, kept=None,
    )  # fmt: skip
    return tuple(places), norms


def _prepare_norms(call: StepCall, upload: Upload) -> None:
    """Tables of the gradients, of which nothing is written: whatever else they may share."""
    call.norms = [_norms(call, dtype) for dtype in dict.fromkeys(grad.dtype for grad in call.grads)]
    kept = call.kept or AddressTable(call, None, guarded=False, fits=False)
    for _, norms in call.norms:
        norms.table = kept.apart(("norms", norms.grads[0].dtype), norms, upload, fits=True)


def is_captured(device: torch.device) -> bool:
    """Whether what is launched there now becomes part of a graph, and may be replayed with other tensors around it."""
    with on(device):
        return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@untraced
def prepare_on_device(call: StepCall, run: Run, upload: Upload, takes: Takes | None = None) -> None:
    """Checks the operands and puts their addresses onto the device, or those of contiguous copies of strided ones.

    ``takes``: which calls that are stored otherwise the kernels step in one pass; the others are staged (staged.py).

    Raises:
        ValueError, TypeError: an operand is not what the kernels take it for.
        RuntimeError: a graph is being captured, and no step of the kind was taken before: its kernels would be loaded
            now, which not every driver permits (before CUDA 12.3 none, and none a module of Triton's).
    """
    with on(call.params[0].device):
        call.table = address_table(call, upload, takes) if takes or call.storage is None else None
        if call.table is None and is_staged(call):
            check_operands(call)
            if call.clip is not None:
                _prepare_norms(call, upload)
            call.staged = call.prepared = True
            return
        if call.table is None and shares_memory(call):
            call.pieces = one_by_one(call)
            for piece in call.pieces:
                prepare_on_device(piece, run, upload, takes)
            call.prepared = True
            return
        if call.table is None:
            # A slope is summed in the order of indices.
            call.copies = plain(call, strided(call) if call.sums is None else range(len(call.params)))
            kept = call.kept
            call.table = kept.apart("copies", call.copies, upload) if kept else address_table(call.copies, upload)
        if call.table is None:
            raise ValueError("Invalid states: those of the parameters of one group and dtype must be of one dtype, too")
        if call.clip is not None and (call.table.has_slabs or call.table.grad_code is None):
            _prepare_norms(call, upload)
        if is_capturing(call.params[0]) and _kernels(call, call.table, run) not in _loaded:
            raise RuntimeError(
                f"Invalid capture: no step by {call.rule} on {call.params[0].device} with these dtypes and options was "
                "taken before; take one as a warm-up before the capture begins, as torch's notes on CUDA graphs ask"
            )
    call.prepared = True


@untraced
def squares_on_device(call: StepCall, out: Tensor, run: Callable[[StepCall, AddressTable, Tensor], None]) -> None:
    """Writes the squared norms of a prepared call's gradients to ``out`` by ``run``, which reads the table alone."""
    for places, norms in call.norms:
        write_at(places, norms.table, out, partial(squares_on_device, norms, run=run))
    for number, piece in enumerate(call.pieces):
        squares_on_device(piece, out[number : number + 1], run)
    if call.norms or call.pieces:
        return
    with on(call.params[0].device):
        call.table.use_on_current_stream()
        run(call, call.table, out)


def write_at(places: Sequence[int], table: AddressTable | None, out: Tensor, write: Callable[[Tensor], None]) -> None:
    """Has ``write`` fill as many numbers as there are places, which become those of ``out``; of the table's call."""
    if places[-1] - places[0] == len(places) - 1:  # they ascend
        return write(out[places[0] : places[-1] + 1])
    numbers = torch.empty(len(places), dtype=out.dtype, device=out.device)
    write(numbers)
    out.index_copy_(0, integers_beside(table, places, out.device), numbers)


def integers_beside(table: AddressTable | None, values: Sequence[int], device: torch.device) -> Tensor:
    """These on a device, kept with the table if there is one: a copy waits for the device, and no graph takes it."""
    return torch.tensor(values, device=device) if table is None else table.integers(tuple(values))


@untraced
def step_on_device(call: StepCall, run: Run, upload: Upload, takes: Takes | None = None) -> None:
    """One step by ``run``, which reads the table alone; arguments and errors as :func:`prepare_on_device`.

    The parameters' device is the current one meanwhile: whoever asks for a stream or a capture means that device's.
    """
    if not call.prepared:
        prepare_on_device(call, run, upload, takes)
    if call.staged:
        return step_staged(call, partial(step_on_device, run=run, upload=upload))
    for piece in call.pieces:
        step_on_device(piece, run, upload)
    if call.pieces:
        return
    with on(call.params[0].device):
        call.table.use_on_current_stream()
        own = call.copies or call
        with measured(own) if own.wants_metrics else nullcontext(own) as plain_call:
            run(plain_call, call.table)
        _loaded.add(_kernels(call, call.table, run))
        if call.copies is not None:
            copy_back(call.copies, call)
