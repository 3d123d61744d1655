"""Loads the native library, which registers ``torch.ops.lrtricks_fused.<rule>_``, and calls its ops."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .call import StepCall
from .table import AddressTable, address_table

NATIVE_RULES = ("sgd", "adam", "rmsprop", "radam", "adabelief")


def _load() -> str | None:
    """Load the library; None, or the reason why it cannot be used."""
    path = Path(__file__).with_name("_native.so")
    if not path.exists():
        return "the native library is not built (pip install --no-build-isolation .)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the native library does not load under torch {torch.__version__}: {error}"
    for rule in NATIVE_RULES:
        for name in (f"{rule}_", f"{rule}_table_"):
            torch.library.register_fake(f"lrtricks_fused::{name}", lambda *args, **kwargs: None)
    return None


load_error = _load()


def cuda_archs() -> list[str]:
    """Compute capabilities the native library has kernels for, such as "9.0" or "12.0+PTX"; none without CUDA."""
    return [] if load_error else torch.ops.lrtricks_fused.cuda_archs().split()


def _scalar(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """A scalar as the kernels read it: float32 or float64, on their device or on the CPU."""
    if tensor is None:
        return None
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.double()
    # From one GPU to another in stream order; to the CPU, where it is read at once, only after waiting.
    return tensor if tensor.is_cpu else tensor.to(device, non_blocking=device.type != "cpu")


def _split(value: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    return (0.0, _scalar(value, device)) if isinstance(value, Tensor) else (value, None)


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


def native_step(call: StepCall) -> None:
    """One fused step by the native op of ``call.rule``.

    On the CPU the op reads any layout; on a GPU strided operands go through contiguous copies.
    """
    if call.params[0].is_cpu:
        _run(call, address_table(call))
    else:
        _step_on_device(call)
    # Ops of a library without autograd kernels do not, and a graph built before the step must not be used after it.
    torch.autograd.graph.increment_version(call.params)


@torch._disable_dynamo  # a compiled step runs this part as it is: addresses mean nothing to a tracer
def _step_on_device(call: StepCall) -> None:
    table = address_table(call)
    if table is not None:
        return _run(call, table)
    copies = _contiguous(call)
    table = address_table(copies)
    if table is None:
        device = call.params[0].device
        raise RuntimeError(f"Invalid state: the states of these parameters must be on {device}, and of one dtype")
    _run(copies, table)
    _copy_back(copies, call)


def _run(call: StepCall, table: AddressTable | None) -> None:
    device = call.params[0].device
    lr, lr_tensor = _split(call.lr, device)
    keep_prob, keep_prob_tensor = _split(call.keep_prob, device)
    grad_weight, grad_weight_tensor = _split(call.grad_weight, device)
    if table is None:
        step = getattr(torch.ops.lrtricks_fused, f"{call.rule}_")
        operands = (call.params, call.grads, *call.states.values(), call.steps, call.param_indices)
    else:
        step = getattr(torch.ops.lrtricks_fused, f"{call.rule}_table_")
        operands = (table.rows, *table.codes, table.chunk_tensors, table.prepared)
    step(
        *operands,
        **call.hyper,
        lr=lr,
        weight_decay=call.weight_decay,
        decoupled_weight_decay=call.decoupled_weight_decay,
        maximize=call.maximize,
        keep_prob=keep_prob,
        grad_weight=grad_weight,
        seed=call.seed - (call.seed >> 63 << 64),  # as a signed 64-bit integer
        lr_tensor=lr_tensor,
        keep_prob_tensor=keep_prob_tensor,
        grad_weight_tensor=grad_weight_tensor,
        grad_scale=_scalar(call.grad_scale, device),
        found_inf=_scalar(call.found_inf, device),
    )
