"""Hands a step to the Triton kernels: the table, the scalars, the grid. No arithmetic."""

import functools
from collections.abc import Hashable

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from lrtricks_fused.step.call import StepCall
from lrtricks_fused.step.device import on, prepare_on_device, scalar, squares_on_device, step_on_device
from lrtricks_fused.step.layouts import fits_one_pass
from lrtricks_fused.step.rule import RULES
from lrtricks_fused.step.storage import DTYPE_CODES
from lrtricks_fused.step.table import SLOPE_COLUMNS, AddressTable

from .doubles import in_halves, scalars_in_halves
from .instances import (
    PREPARE_BLOCK,
    SUM_BLOCK,
    Steps,
    compiler,
    find_means_constexprs,
    kinds_of,
    options,
    prepare_constexprs,
    square_options,
    square_units_constexprs,
    step_constexprs,
    step_options,
    sum_chunks_constexprs,
    sum_partials_constexprs,
    total_constexprs,
)
from .prepare import DECOUPLED_WEIGHT_DECAY, MAXIMIZE, prepare_kernel
from .slices import find_means, sum_partials
from .slope import add_columns, sum_chunks, sum_columns
from .squares import find_clip, square_units, sum_tensor_columns, sum_tensors
from .step import step_kernel
from .storage import INTERPRETED
from .upload import upload

HOST = GPUTarget("cuda", 90, 32)  # what the interpreter stands for
_loaded: set[Hashable] = set()  # step kernels, by all that decides on them


@functools.cache
def _target_of(device: torch.device) -> GPUTarget:
    return triton.runtime.driver.active.get_current_target()


def _target(device: torch.device) -> GPUTarget:
    """What is compiled for on a device, the current one: of AMD's GPUs some run 64 threads together, others 32."""
    return HOST if INTERPRETED.value else _target_of(device)


def _readable(value: float | Tensor, device: torch.device) -> float | Tensor:
    """A tensor that the kernels can read, or a number; of a GPU's step, a tensor on the CPU is read here."""
    if isinstance(value, Tensor):
        value = scalar(value, device)
    return float(value) if isinstance(value, Tensor) and value.is_cpu and device.type != "cpu" else value


def _run(call: StepCall, table: AddressTable) -> None:
    device = call.params[0].device
    scale = 1.0 if call.grad_scale is None else call.grad_scale
    found_inf = 0.0 if call.found_inf is None else call.found_inf
    clip = 1.0 if call.clip is None else call.clip
    given = (call.lr, call.keep_prob, call.grad_weight, scale, found_inf, clip, call.weight_decay)
    scalars = [_readable(value, device) for value in given]  # tensors, too, that must live until the launches
    flags = call.decoupled_weight_decay * DECOUPLED_WEIGHT_DECAY.value | call.maximize * MAXIMIZE.value
    hypers = in_halves([float(call.hyper[name]) for name in RULES[call.rule].hypers])
    tensors, prepared = len(table.rows), table.prepared.view(torch.int64)
    states = [column for column in call.states.values() if column]
    dtype = call.params[0].dtype
    kinds = kinds_of(dtype, states[0][0].dtype if states else dtype, table.staged, call.rounds or 0)
    scratch = table.slope_scratch() if call.sums is not None else None
    centralize = call.centralize and table.slices != 0
    chunks, target = len(table.chunk_tensors), _target(device)
    seed = call.seed - (call.seed >> 63 << 64)
    tricks = (centralize, scratch is not None, table.is_mapped)
    instances = [Steps(call.rule, len(states), kind, target, *tricks) for kind in kinds]
    steps = [step_constexprs(instance, call.variant) | step_options(instance) for instance in instances]
    key = (device, call.variant, *instances)
    # A grid of no programs compiles and loads the kernels. Either may fail, and must not once counts have advanced.
    for compiled in () if key in _loaded else steps:
        step_kernel[(0,)](table.rows, table.chunk_tensors, prepared, seed, **compiled)
    _loaded.add(key)
    means = _launch_means(table, dtype) if centralize else 0
    prepare_kernel[(triton.cdiv(tensors, PREPARE_BLOCK),)](
        table.rows, prepared, tensors, scalars_in_halves(scalars), flags, means,
        0 if scratch is None else scratch.data_ptr(), hypers, **prepare_constexprs(call.rule, dtype),
        **options(compiler()),
    )  # fmt: skip
    for compiled in steps if chunks else ():
        step_kernel[(chunks,)](table.rows, table.chunk_tensors, prepared, seed, **compiled)
    if chunks and scratch is not None:
        _add_slope(call, table, prepared, scratch)


def _launch_means(table: AddressTable, dtype: torch.dtype) -> int:
    """Launches the kernels of slices.py; the address of the means, for what is launched next."""
    scratch, tensors = table.slice_scratch.view(torch.promote_types(dtype, torch.float32)), len(table.rows)
    partials, means = sum_partials_constexprs(dtype), find_means_constexprs()
    sum_partials[(triton.cdiv(table.partials, partials["BLOCK"]),)](
        table.rows, scratch, tensors, table.partials, **partials, **options(compiler())
    )
    find_means[(triton.cdiv(table.slices, means["BLOCK"]),)](
        table.rows, scratch, tensors, table.slices, table.partials, **means, **options(compiler(), warps=1)
    )
    return scratch.data_ptr() + table.partials * scratch.element_size()


def _sum_chunks(table: AddressTable, scratch: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums of chunks from those of units; both lie in the scratch."""
    chunks = len(table.chunk_tensors)
    sums = scratch[-8 * (chunks + SLOPE_COLUMNS) :].view(torch.float64)
    sum_chunks[(triton.cdiv(chunks, SUM_BLOCK),)](
        table.rows, table.chunk_tensors, scratch.view(torch.int64), sums, chunks,
        **sum_chunks_constexprs(dtype), **options(compiler()),
    )  # fmt: skip
    return sums


def _add_slope(call: StepCall, table: AddressTable, prepared: Tensor, scratch: Tensor) -> None:
    chunks, sums = len(table.chunk_tensors), _sum_chunks(table, scratch, call.params[0].dtype)
    sum_columns[(1,)](sums, chunks, **options(compiler()))
    add_columns[(1,)](sums, chunks, call.sums, prepared, **total_constexprs(compiler()), **options(compiler(), warps=1))


def _run_squares(call: StepCall, table: AddressTable, out: Tensor) -> None:
    dtype, scratch = list(DTYPE_CODES)[table.grad_code], table.slope_scratch()
    chunks, tensors = len(table.chunk_tensors), len(table.rows)
    sums, target = scratch.view(torch.float64), _target(out.device)
    if chunks:
        square_units[(chunks,)](
            table.rows, table.chunk_tensors, scratch.view(torch.int64),
            **square_units_constexprs(dtype, target), **square_options(dtype, target),
        )  # fmt: skip
        sums = _sum_chunks(table, scratch, dtype)
        sum_tensor_columns[(triton.cdiv(chunks, SUM_BLOCK),)](
            table.rows, table.chunk_tensors, sums, chunks, BLOCK=SUM_BLOCK, **options(compiler())
        )
    sum_tensors[(triton.cdiv(tensors, SUM_BLOCK),)](
        table.rows, sums, out, tensors, BLOCK=SUM_BLOCK, **options(compiler())
    )


def squares(call: StepCall, out: Tensor) -> None:
    """Writes the squared norms of a prepared call's gradients into ``out``."""
    squares_on_device(call, out, _run_squares)


def clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    """Writes the norm of all gradients, and the factor that takes it to ``max_norm`` at most."""
    count, device = len(squares) - SLOPE_COLUMNS, squares.device
    scale = 1.0 if grad_scale is None else _readable(grad_scale, device)  # must live until the launch
    with on(device):
        sum_columns[(1,)](squares, count, **options(compiler()))
        find_clip[(1,)](
            squares, norm, factor, count, scalars_in_halves([scale]), in_halves([max_norm]),
            **total_constexprs(compiler()), **options(compiler(), warps=1),
        )  # fmt: skip


def prepare(call: StepCall) -> None:
    """Checks the operands and puts their addresses onto the device."""
    prepare_on_device(call, _run, upload, fits_one_pass)


def triton_step(call: StepCall) -> None:
    """One fused step by the Triton kernels."""
    step_on_device(call, _run, upload, fits_one_pass)
    call.count_versions()
