"""Steps by the CUDA kernels' own text, compiled for the host (tests/cuda_host): the same table, chunks and launches.

Every chunk is run block after block and thread after thread, on tables whose scratch is poisoned first.
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
from lrtricks_fused.step.table import SLOPE_COLUMNS, AddressTable

ROOT = Path(__file__).parents[2]
POISON = 0xCD


@functools.cache
def module() -> ModuleType:
    """The compiled module, built on first use."""
    build, flags = ROOT / "build" / "cuda-host", ""
    if os.environ.get("LRTRICKS_SANITIZE") == "1":  # make sanitize, which also preloads the runtimes
        build, flags = build.with_name("cuda-host-sanitize"), "-g1 -fsanitize=address,undefined -fno-sanitize-recover"
    make = ["make", "-s", "-j2", "-C", ROOT / "tests" / "cuda_host", f"PYTHON={sys.executable}", f"BUILD={build}"]
    build.mkdir(parents=True, exist_ok=True)
    without_preload = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with open(build / "lock", "w") as lock:  # several processes may run tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([*make, f"EXTRA={flags}"], check=True, env=without_preload)
    spec = importlib.util.spec_from_file_location("cuda_on_host", build / "cuda_on_host.so")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class HostTable(AddressTable):
    """The table of a device whose memory is the host's."""

    def __init__(self, call: StepCall) -> None:
        super().__init__(call, upload)
        assert self.rows is not None, "these tensors have no table"
        self.prepared.fill_(POISON)


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


def step(call: StepCall) -> None:
    """One step of ``call`` by the kernels; its operands must be contiguous, or in channels_last."""
    table = HostTable(call)
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
        table.is_mapped,
    )  # fmt: skip


def squares(call: StepCall, out: Tensor) -> None:
    """The squared norms of the gradients of ``call`` by the kernels, into poisoned numbers."""
    table = HostTable(call)
    memory = [table.rows, table.chunk_tensors, table.slope_scratch().fill_(POISON)]
    out.fill_(float("nan"))
    addresses = [tensor.data_ptr() for tensor in memory]
    module().squares(addresses, len(table.rows), len(table.chunk_tensors), table.codes[1], out.data_ptr())


def clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    """The norm of all gradients and the factor on them by the kernels."""
    count = squares.numel() - SLOPE_COLUMNS
    squares[count:] = norm.fill_(float("nan"))
    scale = number(grad_scale, 1.0)
    module().clip(squares.data_ptr(), count, scale, max_norm, norm.data_ptr(), factor.data_ptr())
