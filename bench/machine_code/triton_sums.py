"""The machine code of the Triton kernels around step_kernel that add up or upload: of slope, squares and table."""

import importlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

from . import triton_model
from .triton_model import Reading

SUMS = "*fp64"
ROWS: dict[str, str] = {"rows": "*i64"}
CHUNKS: dict[str, str] = {**ROWS, "chunk_tensors": "*i32"}
# Of each kernel its module and its arguments.
KERNELS: dict[str, tuple[str, dict[str, str | tuple[str, ...]]]] = {
    "square_units": ("squares", {**CHUNKS, "scratch": "*i64"}),
    "sum_chunks": ("slope", {**CHUNKS, "units": "*i64", "sums": SUMS, "chunks": "i64"}),
    "sum_columns": ("slope", {"sums": SUMS, "chunks": "i64"}),
    "add_columns": ("slope", {"sums": SUMS, "chunks": "i64", "slope": SUMS, "prepared": "*i64"}),
    "sum_tensor_columns": ("squares", {**CHUNKS, "sums": SUMS, "chunks": "i64"}),
    "sum_tensors": ("squares", {**ROWS, "sums": SUMS, "squares": SUMS, "tensors": "i64"}),
    "find_clip": ("squares", {"squares": SUMS, "norm": SUMS, "factor": SUMS, "count": "i64",
                              "grad_scale": ("i64",) * 3, "max_norm": ("i64",) * 2}),
    "write_words": ("upload", {"target": "*i64", "pitch": "i64", "count": "i64", "own": "i64",
                               "words": ("i64",) * 480}),
}  # fmt: skip
OF_DTYPE = ("square_units", "sum_chunks")  # have an instance of each dtype of gradients
ONE_WARP = ("add_columns", "find_clip", "write_words")


def _constexprs(kernel: str, dtype: Any, target: Any) -> dict[str, object]:
    from lrtricks_fused.triton_kernels import instances

    if kernel == "square_units":
        return instances.square_units_constexprs(dtype, target)
    if kernel == "sum_chunks":
        return instances.sum_chunks_constexprs(dtype)
    if kernel in ("add_columns", "find_clip"):
        return instances.total_constexprs(target.backend)
    if kernel == "write_words":
        return instances.words_constexprs(target.backend)
    return {"BLOCK": instances.SUM_BLOCK} if kernel.startswith("sum_tensor") else {}


def read_sums(arch: int, kernel: str, dtype: str) -> Reading:
    """Compiles one of KERNELS and reads it; of the executed instructions nothing is said."""
    import torch

    from lrtricks_fused.triton_kernels import instances

    module, types = KERNELS[kernel]
    target, of = triton_model._target(arch), getattr(torch, triton_model.DTYPES[dtype][0])
    options = instances.options(target.backend, 1 if kernel in ONE_WARP else instances.WARPS)
    if kernel == "square_units":
        options = instances.square_options(of, target)
    function = getattr(importlib.import_module(f"lrtricks_fused.triton_kernels.{module}"), kernel)
    given: Mapping[str, Sequence[str]] = types
    return triton_model._compile(function, _constexprs(kernel, of, target), given, arch, **options)[0]


@cache
def sums_reading(arch: int, kernel: str, dtype: str) -> Future[Reading]:
    """The same in a process of its own."""
    return triton_model._pool().submit(read_sums, arch, kernel, dtype)
