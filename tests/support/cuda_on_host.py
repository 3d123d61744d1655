"""Steps by the CUDA kernels' own text, compiled for the host (tests/cuda_host): the same table, chunks and launches.

Every chunk is run block after block and thread after thread, on tables whose scratch is poisoned first. What happens
around the kernels is what lrtricks_fused/step/device.py does on a GPU.
"""

import fcntl
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from lrtricks_fused.step.call import StepCall
from lrtricks_fused.step.device import prepare_on_device, squares_on_device, step_on_device
from lrtricks_fused.step.layouts import fits_one_pass
from lrtricks_fused.step.table import SLOPE_COLUMNS, AddressTable

ROOT = Path(__file__).parents[2]
POISON = 0xCD


@functools.cache
def module() -> ModuleType:
    """The compiled module, built on first use."""
    build, sanitized = ROOT / "build" / "cuda-host", []
    if os.environ.get("LRTRICKS_SANITIZE") == "1":  # make sanitize, which also preloads the runtimes
        build, sanitized = build.with_name("cuda-host-sanitize"), ["SANITIZED=1"]
    make = ["make", "-s", "-j2", "-C", ROOT / "tests" / "cuda_host", f"PYTHON={sys.executable}", f"BUILD={build}"]
    build.mkdir(parents=True, exist_ok=True)
    without_preload = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with open(build / "lock", "w") as lock:  # several processes may run tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([*make, *sanitized], check=True, env=without_preload)
    spec = importlib.util.spec_from_file_location("cuda_on_host", build / "cuda_on_host.so")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def upload(target: Tensor, words: Tensor) -> None:
    """Words by the kernel that writes them, into poisoned memory."""
    target.fill_(0x7BADBADBADBADBAD)
    pitch = target.stride(0) if target.dim() == 1 else 1
    module().upload(target.data_ptr(), pitch, words.contiguous().data_ptr(), words.numel())


def number(value: float | Tensor | None, default: float = 0.0) -> tuple[float, int, bool]:
    """A hyper-parameter as the kernels take it: by value, or by the address of a tensor."""
    if value is None:
        return default, 0, False
    if isinstance(value, Tensor):
        return float("nan"), value.data_ptr(), value.dtype == torch.float64
    return float(value), 0, False


def run(call: StepCall, table: AddressTable) -> None:
    """One step of what the table points to by the kernels, on poisoned scratch."""
    table.prepared.fill_(POISON)
    flags = [value for value in call.hyper.values() if isinstance(value, bool)]
    numbers = [value for value in call.hyper.values() if not isinstance(value, bool)]
    state_mask, param_dtype, state_dtype = table.codes
    slices, slope = 0, [0, 0]
    if table.slices:
        slices = table.slice_scratch.fill_(POISON).data_ptr()
    if call.sums is not None:
        slope = [table.slope_scratch().fill_(POISON).data_ptr(), call.sums.data_ptr()]
    module().step(
        call.rule, numbers, flags, state_mask,
        [*(tensor.data_ptr() for tensor in (table.rows, table.chunk_tensors, table.prepared)), slices, *slope],
        len(table.rows), len(table.chunk_tensors), table.slices, table.partials,
        [number(call.lr), number(call.keep_prob), number(call.grad_weight), number(call.grad_scale, 1.0),
         number(call.found_inf), number(call.clip, 1.0)],
        call.weight_decay, call.decoupled_weight_decay, call.maximize, call.seed, param_dtype, state_dtype,
        table.is_mapped, table.staged is not None, call.rounds or 0,
    )  # fmt: skip


def run_squares(norms: StepCall, table: AddressTable, out: Tensor) -> None:
    """The squared norms of the gradients that the table points to by the kernels, into poisoned numbers."""
    memory = [table.rows, table.chunk_tensors, table.slope_scratch().fill_(POISON)]
    out.fill_(float("nan"))
    addresses = [tensor.data_ptr() for tensor in memory]
    module().squares(addresses, len(table.rows), len(table.chunk_tensors), table.grad_code, out.data_ptr())


# The functions of a backend, which take a step as one on a GPU is taken: what is copied, staged or split, is.
def prepare(call: StepCall) -> None:
    """Checks the operands and puts their addresses into a table, or those of copies."""
    prepare_on_device(call, run, upload, fits_one_pass)


def step(call: StepCall) -> None:
    """One step of ``call`` by the kernels."""
    step_on_device(call, run, upload, fits_one_pass)


def squares(call: StepCall, out: Tensor) -> None:
    """The squared norms of a prepared call's gradients by the kernels."""
    squares_on_device(call, out, run_squares)


def clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    """The norm of all gradients and the factor on them by the kernels."""
    count = squares.numel() - SLOPE_COLUMNS
    squares[count:] = norm.fill_(float("nan"))
    scale = number(grad_scale, 1.0)
    module().clip(squares.data_ptr(), count, scale, max_norm, norm.data_ptr(), factor.data_ptr())
