"""Loads the native library, which registers ``torch.ops.lrtricks_fused.<rule>_``, and calls its ops."""

from pathlib import Path

import torch
from torch import Tensor

from .call import StepCall
from .table import address_table

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


def _split(value: float | Tensor) -> tuple[float, Tensor | None]:
    if not isinstance(value, Tensor):
        return value, None
    return 0.0, value if value.dtype in (torch.float32, torch.float64) else value.double()


def native_step(call: StepCall) -> None:
    """One fused step by the native op of ``call.rule``."""
    lr, lr_tensor = _split(call.lr)
    keep_prob, keep_prob_tensor = _split(call.keep_prob)
    grad_weight, grad_weight_tensor = _split(call.grad_weight)
    table = address_table(call)
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
        grad_scale=call.grad_scale,
        found_inf=call.found_inf,
    )
    # Ops of a library without autograd kernels do not, and a graph built before the step must not be used after it.
    torch.autograd.graph.increment_version(call.params)
