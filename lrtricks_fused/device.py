"""A step through a table of addresses on a device: what the backends of GPUs share."""

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from .call import StepCall
from .table import AddressTable, Upload, address_table

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


def _contiguous(call: StepCall) -> StepCall:
    """The same call on contiguous copies of its strided operands, as plain tensors."""

    def copies(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.detach().contiguous() for tensor in tensors]

    states = {name: copies(column) for name, column in call.states.items()}
    return replace(call, params=copies(call.params), grads=copies(call.grads), states=states, tables={})


def _copy_back(copies: StepCall, call: StepCall) -> None:
    for mine, theirs in ((copies.params, call.params), *zip(copies.states.values(), call.states.values(), strict=True)):
        for copy, tensor in zip(mine, theirs, strict=True):
            if copy.data_ptr() != tensor.data_ptr():
                tensor.copy_(copy)


def _kernels(call: StepCall, run: Run) -> Hashable:
    """What decides which kernels a call launches, on which device."""
    states = tuple(column[0].dtype if column else None for column in call.states.values())
    flags = tuple(value for value in call.hyper.values() if isinstance(value, bool))
    slices = call.centralize and any(map(call.slice_length, call.params))
    return run, call.params[0].device, call.params[0].dtype, call.rule, states, flags, slices, call.slope is not None


@torch._disable_dynamo  # a compiled step runs this part as it is: addresses mean nothing to a tracer
def step_on_device(call: StepCall, run: Run, upload: Upload) -> None:
    """One step by ``run``, which reads the table alone; strided operands go through contiguous copies.

    The parameters' device is the current one meanwhile: whoever asks for a stream or a capture means that device's.

    Raises:
        RuntimeError: states are not on the parameters' device, or not of one dtype; or a graph is being captured, and
            no step of the kind was taken before: its kernels would be loaded now, which not every driver permits
            (before CUDA 12.3 none, and none a module of Triton's).
    """
    device = call.params[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernels = _kernels(call, run)
        if kernels not in _loaded and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"Invalid capture: no step by {call.rule} on {device} with these dtypes and options was taken before; "
                "take one as a warm-up before the capture begins, as torch's notes on CUDA graphs ask"
            )
        _step(call, run, upload)
        _loaded.add(kernels)


def _step(call: StepCall, run: Run, upload: Upload) -> None:
    table = address_table(call, upload)
    if table is not None:
        if call.params[0].is_cuda:
            table.use_on(torch.cuda.current_stream())
        return run(call, table)
    copies = _contiguous(call)
    table = address_table(copies, upload)
    if table is None:
        device = call.params[0].device
        raise RuntimeError(f"Invalid state: the states of these parameters must be on {device}, and of one dtype")
    run(copies, table)
    _copy_back(copies, call)
