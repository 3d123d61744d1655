"""A step through a table of addresses on a device: what the backends of GPUs share."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from .call import StepCall
from .copies import copy_back, one_by_one, plain
from .layouts import Takes, strided
from .operands import check_operands, is_staged, shares_memory
from .staged import measured, step_staged
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


def _norms(call: StepCall) -> StepCall:
    """A call of the gradients as they are given, whose squares are summed in the order of their indices."""
    grads = [grad.contiguous() for grad in call.grads]
    norms = replace(call, params=grads, grads=grads, states={}, scalar_states={}, tables={}, table=None, kept=None)
    norms.storage = norms.index_maps = norms.clip = None
    if len({grad.dtype for grad in grads}) > 1:
        norms.pieces = one_by_one(norms)
    return norms


def _prepare_norms(call: StepCall, run: Run, upload: Upload) -> None:
    call.norms = _norms(call)
    if call.kept is not None and not call.norms.pieces:
        call.norms.table = call.kept.apart("norms", call.norms, upload)
    if call.norms.table is None:
        for norms in call.norms.pieces or [call.norms]:
            prepare_on_device(norms, run, upload)


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
                _prepare_norms(call, run, upload)
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
            _prepare_norms(call, run, upload)
        capturing = call.params[0].is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing and _kernels(call, call.table, run) not in _loaded:
            raise RuntimeError(
                f"Invalid capture: no step by {call.rule} on {call.params[0].device} with these dtypes and options was "
                "taken before; take one as a warm-up before the capture begins, as torch's notes on CUDA graphs ask"
            )
    call.prepared = True


@untraced
def squares_on_device(call: StepCall, out: Tensor, run: Callable[[StepCall, AddressTable, Tensor], None]) -> None:
    """Writes the squared norms of a prepared call's gradients to ``out`` by ``run``, which reads the table alone."""
    call = call.norms or call
    for number, piece in enumerate(call.pieces):
        squares_on_device(piece, out[number : number + 1], run)
    if call.pieces:
        return
    with on(call.params[0].device):
        if call.params[0].is_cuda:
            call.table.use_on_current_stream()
        run(call, call.table, out)


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
        if call.params[0].is_cuda:
            call.table.use_on_current_stream()
        own = call.copies or call
        with measured(own) if own.wants_metrics else nullcontext(own) as plain_call:
            run(plain_call, call.table)
        _loaded.add(_kernels(call, call.table, run))
        if call.copies is not None:
            copy_back(call.copies, call)
