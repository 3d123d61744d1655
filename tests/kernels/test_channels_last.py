"""Operands one dimension of which lies innermost are stepped in the order of memory, with the bits of the indices."""

import pytest
import torch
from helpers import assert_same_bits, everything
from inventory import DTYPES, INTERPRETED, RICH
from tensors import TensorCase, channels_last, contiguous, make_params, set_grads
from test_native_equals_reference import _cache_masks  # noqa: F401 (a fixture that holds here, too)
from triton_worker import interpreted

import lrtricks_fused as lrt
from lrtricks_fused.step.layouts import MAX_SLAB
from lrtricks_fused.step.table import CHANNELS, COLUMNS, SLAB


def channels_last_3d(values):
    """NDHWC memory of an NCDHW tensor."""
    return values.clone(memory_format=torch.channels_last_3d)


def innermost(dim):
    """A layout in which a dimension lies innermost, as the rows of a transposed matrix do."""
    return lambda values: values.movedim(dim, -1).contiguous().movedim(-1, dim)


def alike(*shape, layout=channels_last):
    return TensorCase(shape, layout, layout)


# Slabs within a tile, across tiles, that begin anywhere in one; the largest; one index; what is contiguous anyway; and
# transposed matrices, sequences of channels, and four dimensions of which the first lies innermost.
SHAPES = [
    alike(7, 3, 5, 5), alike(40, 64, 3, 3), alike(3, 2, 1, 2), alike(2, 2048, 4, 4), alike(1, 8, 3, 3),
    alike(5, 3, 2, 3, 4, layout=channels_last_3d), alike(6, 1, 3, 3), alike(6, 9, 1, 1), TensorCase((1300,)),
    alike(70, 45, layout=innermost(0)), alike(256, 128, layout=innermost(0)), alike(9, 20, 31, layout=innermost(1)),
    alike(6, 4, 3, 3, layout=innermost(0)), alike(3, 4, 5, 6, layout=innermost(2)),
]  # fmt: skip
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)


def run(case, dtype, backend, shapes=SHAPES, steps=2, slopes=None, **arguments):
    """All parameters and states after some steps, and whether a table of addresses had rows in channels_last."""
    params = make_params(shapes, dtype.dtype)
    arguments = {"keep_prob": 0.5, "state_dtype": dtype.state_dtype, **arguments}
    optimizer = case.make(params, backend=backend, **arguments)
    for step in range(steps):
        set_grads(params, shapes, step)
        if slopes is None:
            optimizer.step()
        else:
            with optimizer.add_slopes_to(slopes):
                optimizer.step()
    tables = [table for table in optimizer._tables.values() if table.rows is not None]
    return everything(optimizer), any(bool((table.rows[:, SLAB] != 0).any()) for table in tables)


@by_dtype
@by_case
def test_native_equals_reference(case, dtype, isa):
    ours, in_memory_order = run(case, dtype, "native")
    assert_same_bits(ours, run(case, dtype, "reference")[0])
    assert in_memory_order == ("momentum_window" not in case.name)


@by_dtype
@by_case
def test_cuda_kernels_equal_reference(case, dtype, on_host):
    shapes = SHAPES if "momentum_window" not in case.name else SHAPES[8:9]
    assert_same_bits(*(run(case, dtype, backend, shapes)[0] for backend in ("native", "reference")))


@pytest.mark.parametrize("keep_prob", [0.0, 0.3, 1.0])
def test_cuda_kernels_at_every_keep_prob(keep_prob, on_host):
    results = (run(RICH[1], DTYPES[0], backend, keep_prob=keep_prob)[0] for backend in ("native", "reference"))
    assert_same_bits(*results)


# The interpreter takes a tenth of a second for a chunk.
FEW = [alike(7, 3, 5, 5), alike(40, 64, 3, 3), TensorCase((1300,)), alike(70, 45, layout=innermost(0))]


@pytest.mark.parametrize("dtype", INTERPRETED, ids=lambda d: d.name)
@interpreted
def test_triton_kernels_equal_reference(dtype):
    assert_same_bits(*(run(RICH[1], dtype, backend, FEW)[0] for backend in ("triton", "reference")))


@pytest.mark.parametrize("threads", [1, 3, 4])
@pytest.mark.parametrize("keep_prob", [0.0, 0.3, 1.0])
def test_on_threads(threads, keep_prob):
    expected, _ = run(RICH[1], DTYPES[0], "reference", keep_prob=keep_prob)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same_bits(run(RICH[1], DTYPES[0], "native", keep_prob=keep_prob)[0], expected)
    finally:
        torch.set_num_threads(before)


@by_case
def test_with_a_slope_and_centralized(case):
    for arguments in ({"slopes": True}, {"centralize": True}):
        results, totals = [], []
        for backend in ("native", "reference"):
            slopes = {} if arguments.get("slopes") else None
            ours, _ = run(case, DTYPES[0], backend, **{**arguments, "slopes": slopes})
            results.append(ours)
            totals.append(list((slopes or {}).values()))
        assert_same_bits(*results)
        assert_same_bits(*totals)


def test_of_a_larger_slab_and_of_a_gradient_that_lies_otherwise():
    shapes = [alike(2, MAX_SLAB // 4 + 1, 2, 2), alike(7, 3, 5, 5)]
    for last in (shapes[1], TensorCase((7, 3, 5, 5), channels_last, contiguous)):
        ours, in_memory_order = run(RICH[1], DTYPES[0], "native", [shapes[0], last])
        assert_same_bits(ours, run(RICH[1], DTYPES[0], "reference", [shapes[0], last])[0])
        assert not in_memory_order  # a list is stepped as one


# Chunks that end within a slab, and whose draws are those of one slab, of two and of three.
LARGE = [alike(5, 1024, 3, 3), alike(4, 512, 5, 3), alike(3, 2700, 2, 2), alike(2, 4096, 2, 4), alike(24, 1000, 2, 1)]


@by_dtype
def test_cuda_kernels_equal_reference_on_large_slabs(dtype, on_host):
    assert_same_bits(*(run(RICH[1], dtype, backend, LARGE)[0] for backend in ("native", "reference")))


@interpreted
def test_a_list_of_several_layouts_is_one_part():
    for tracks, parts in ((False, 1), (True, 2)):
        params = make_params([*FEW, TensorCase((40, 30))], torch.float32)
        optimizer = lrt.Adam(params, keep_prob=0.5, backend="triton", track_changes=tracks)
        set_grads(params, [*FEW, TensorCase((40, 30))], 0)
        optimizer.step()
        assert len(optimizer._gather(optimizer.param_groups[0])) == parts


def test_a_gradient_that_changes_its_layout():
    results = []
    for backend in ("native", "reference"):
        params = make_params(SHAPES, torch.float32)
        optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend)
        for step in range(4):
            set_grads(params, SHAPES, step)
            if step == 2:
                params[0].grad = params[0].grad.contiguous()
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("columns", [(4, 3), (-8, 2), (75, 4), (75, 0), (2 * MAX_SLAB, 2)])
def test_a_table_that_cannot_be(columns):
    optimizer = lrt.Adam(make_params([alike(7, 3, 5, 5)], torch.float32), keep_prob=0.5, backend="native")
    params = optimizer.param_groups[0]["params"]
    set_grads(params, [alike(7, 3, 5, 5)], 0)
    optimizer.step()
    (table,) = optimizer._tables.values()
    assert table.rows.shape[1] == COLUMNS and table.rows[0, SLAB] == 75 and table.rows[0, CHANNELS] == 3
    before = params[0].detach().clone()
    table.rows[0, SLAB], table.rows[0, CHANNELS] = columns
    with pytest.raises(RuntimeError, match="cannot be stepped in channels_last"):
        optimizer.step()
    assert torch.equal(params[0], before)
