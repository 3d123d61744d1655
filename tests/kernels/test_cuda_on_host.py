"""The CUDA kernels' own text, run on the host, against the reference, bit for bit (and the CPU step on a table)."""

import itertools
import weakref
from types import SimpleNamespace

import cuda_on_host
import numpy
import pytest
import torch
from cuda_on_host import POISON, module, step
from helpers import SCALAR_STATES, assert_same_bits, call_of, check_left_alone, everything
from inventory import CASES, DTYPES, KEEP_PROBS, MASKED_CASES, RICH, SEED
from philox_numpy import keep_bits
from tensors import (
    GUARD,
    MANY,
    TensorCase,
    channels_last,
    contiguous,
    gapped,
    guards_of,
    make_params,
    set_grads,
    transposed,
    unaligned,
)
from test_native_equals_reference import _cache_masks, run  # noqa: F401 (a fixture that holds here, too)

import lrtricks_fused as lrt
from lrtricks_fused.step import call, keep, table
from lrtricks_fused.step.device import step_on_device

# Odd sizes around a tile, a row and a chunk; several chunks; no elements at all, first.
SIZES = [(0,), (), (1,), (63,), (65,), (3, 5, 7), (511,), (512,), (1027,), (8192,), (20_001,)]
SHAPES = [TensorCase(shape) for shape in SIZES]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


def test_constants_are_those_of_the_kernels():
    named = {**vars(keep), **vars(call), **vars(table)}
    assert {name: named[name] for name in module().constants} == module().constants


@by_dtype
@pytest.mark.parametrize(("case", "keep_prob"), MASKED_CASES)
def test_kernels_equal_reference(case, dtype, keep_prob, on_host):
    expected = run(case, dtype, keep_prob, "reference", SHAPES)
    assert_same_bits(run(case, dtype, keep_prob, "native", SHAPES), expected)


@pytest.mark.parametrize("keep_prob", KEEP_PROBS)
@by_dtype
@pytest.mark.parametrize("case", CASES[::5], ids=lambda c: c.name)
def test_cpu_step_on_a_table_equals_reference(case, dtype, keep_prob):
    expected = run(case, dtype, keep_prob, "reference", SHAPES)
    assert_same_bits(run(case, dtype, keep_prob, "native", SHAPES), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_many_steps(case, on_host):
    native, reference = (run(case, DTYPES[0], 0.3, backend, SHAPES[3:7], 12) for backend in ("native", "reference"))
    assert_same_bits(native, reference)


@pytest.mark.parametrize("case", CASES[::10], ids=lambda c: c.name)
def test_many_tensors(case, on_host):
    assert_same_bits(run(case, DTYPES[0], 0.5, "native", MANY), run(case, DTYPES[0], 0.5, "reference", MANY))


def test_tensors_without_elements_count_their_steps(on_host):
    params = [torch.zeros(shape, requires_grad=True) for shape in ((0,), (3, 0))]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer = lrt.Adam(params, backend="native")
    optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [1.0, 1.0]


def test_capturable_scalars_are_read_when_the_kernel_runs(on_host):
    shapes = [TensorCase((700,)), TensorCase((9000,))]
    results = []
    for backend in ("native", "reference"):
        params = make_params(shapes, torch.float32)
        scalars = {name: torch.tensor(0.0, dtype=dtype) for name, dtype in (
            ("lr", torch.float64), ("keep_prob", torch.float32), ("grad_weight", torch.float64))}  # fmt: skip
        optimizer = lrt.AdamW(params, seed=SEED, backend=backend, capturable=True, **scalars)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(3.0), torch.tensor(0.0)
        for n in range(8):
            for i, scalar in enumerate(scalars.values()):
                scalar.fill_((0.1, 0.3, 0.7)[i] / (n + 1))
            optimizer.grad_scale.fill_(1.5 + n)
            optimizer.found_inf.fill_(n in (0, 3))
            set_grads(params, shapes, n)
            optimizer.step()
        assert [state["step"].item() for state in optimizer.state.values()] == [6.0, 6.0]
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("keep_prob", [-1.0, 0.0, 1.0, 2.0, float("nan")])
def test_a_device_keep_prob_out_of_range_is_clamped(keep_prob, on_host):
    param = torch.zeros(1000, requires_grad=True)
    param.grad = torch.ones(1000)
    optimizer = lrt.SGD([param], lr=1.0, backend="native")
    optimizer.param_groups[0]["keep_prob"] = torch.tensor(0.5)
    call = call_of(optimizer)
    call.keep_prob = torch.tensor(keep_prob)  # as a tensor on the device, which nothing can check
    step(call)
    assert torch.equal(param, torch.full((1000,), -1.0 if keep_prob >= 1 else 0.0))


@by_dtype
@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.name)
def test_any_alignment_and_nothing_outside(case, dtype, on_host):
    shapes = [TensorCase((1027,)), TensorCase((511,)), TensorCase((8200,))]
    results = []
    for backend in ("native", "reference"):
        params = [unaligned(p.detach()).requires_grad_() for p in make_params(shapes, dtype.dtype)]
        optimizer = case.make(params, keep_prob=0.5, state_dtype=dtype.state_dtype, backend=backend)
        for n in range(3):
            set_grads(params, shapes, n)
            if n == 1:  # a part of the operands aligned, a part not
                for param in params[1:]:
                    param.grad = unaligned(param.grad)
            optimizer.step()
            for state in list(optimizer.state.values())[1:]:
                for name, tensor in state.items():
                    if name not in SCALAR_STATES:
                        state[name] = unaligned(tensor)
        states = [
            t for state in list(optimizer.state.values())[1:] for name, t in state.items() if name not in SCALAR_STATES
        ]
        guards = [guards_of(tensor) for tensor in [*params, *states]]
        assert all((guard == GUARD).all() for guard in guards)
        results.append(everything(optimizer))
    assert_same_bits(*results)


def test_a_pair_of_dtypes_without_a_kernel_is_an_error():
    param = torch.zeros(5)
    arguments = [torch.zeros(1, table.COLUMNS, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), torch.zeros(128)]
    numbers = [(0.0, 0, False)] * 6
    memory = [*(tensor.data_ptr() for tensor in arguments), 0, 0, 0]
    for dtypes, staged in (((0, 1), False), ((1, 1), True)):
        told = [numbers, 0.0, False, False, 0, *dtypes, False, staged, 0]
        with pytest.raises(RuntimeError, match="no kernel"):
            module().step("adam", [0.9, 0.9, 1e-8], [], 3, memory, 1, 1, 0, 0, *told)
    assert torch.equal(param, torch.zeros(5))


def test_upload_writes_every_word_and_no_other():
    for pitch, count in itertools.product((1, table.COLUMNS), (0, 1, 480, 3999, 4000, 4001, 9000)):
        words = torch.arange(1, count + 1)
        target, wanted = torch.full((2, (count + 2) * pitch), -1)
        launches = module().upload(target[pitch:].data_ptr(), pitch, words.data_ptr(), count)
        wanted[pitch : (count + 1) * pitch : pitch] = words
        assert torch.equal(target, wanted)
        assert launches == -(-count // 4000)


@pytest.mark.parametrize(("tensors", "launches"), [(161, 1), (1000, 1)])
def test_moved_gradients_upload_their_column_alone(tensors, launches):
    params = [torch.full((3,), float(n)).requires_grad_() for n in range(tensors)]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = lrt.SGD(params, lr=1.0, backend="reference")
    optimizer.step()
    uploads = []

    def upload(target, words):
        pitch = target.stride(0) if target.dim() == 1 else 1
        uploads.append((words.numel(), module().upload(target.data_ptr(), pitch, words.data_ptr(), words.numel())))

    placed = table.AddressTable(call_of(optimizer), upload)
    uploads.clear()
    for param in params[1:]:
        param.grad = torch.ones(3)
    moved = call_of(optimizer)
    assert placed.holds(moved) and uploads == [(tensors, launches)]
    assert torch.equal(placed.rows, table.AddressTable(moved, torch.Tensor.copy_).rows)
    assert placed.holds(moved) and len(uploads) == 1


def test_scratch_is_poisoned(monkeypatch):
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    call = call_of(lrt.SGD([param], lr=1.0, backend="reference"))
    placed = table.AddressTable(call, cuda_on_host.upload)
    monkeypatch.setattr(cuda_on_host, "module", lambda: SimpleNamespace(step=lambda *_: None))
    cuda_on_host.run(call, placed)
    assert bool((placed.prepared == POISON).all())


def test_of_a_mixed_list_only_what_is_strided_is_copied(on_host):
    shapes = [TensorCase((7, 3, 5, 5), channels_last, channels_last), TensorCase((40, 30), gapped, gapped),
              TensorCase((1300,)), TensorCase((33, 65), contiguous, transposed)]  # fmt: skip
    results = []
    for backend in ("native", "reference"):
        params = make_params(shapes, torch.float32)
        optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend)
        for n in range(2):
            set_grads(params, shapes, n)
            optimizer.step()
        results.append(everything(optimizer))
        guards = guards_of(params[1])
        assert guards.numel() and (guards == GUARD).all()
    assert_same_bits(*results)
    optimizer.backend = "native"
    call = call_of(optimizer)
    cuda_on_host.prepare(call)
    assert call.table.has_slabs
    for mine, theirs, strided in ((call.copies.params, call.params, {1}), (call.copies.grads, call.grads, {1, 3})):
        assert {i for i in range(4) if mine[i].data_ptr() != theirs[i].data_ptr()} == strided


STRIDED = [TensorCase((40, 30), gapped, gapped), TensorCase((1300,)), TensorCase((33, 65), contiguous, transposed)]
SLABS = [TensorCase((7, 3, 5, 5), channels_last, channels_last), TensorCase((4, 6, 2, 2), channels_last, channels_last)]


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("shapes", [STRIDED, SLABS], ids=["strided", "slabs"])
def test_tables_of_copies_are_kept_and_copies_are_not(shapes, max_norm, on_host, monkeypatch):
    uploads, copies = [], []

    def upload(target, words):
        uploads.append("table" if target.dim() == 2 else "chunks" if target.stride(0) == 1 else "column")
        module().upload(target.data_ptr(), target.stride(0) if uploads[-1] == "column" else 1,
                        words.data_ptr(), words.numel())  # fmt: skip

    def step_and_look(call, *args, **kwargs):
        found = [c for c in (call.copies, *(norms for _, norms in call.norms)) if c is not None]
        given = {t.data_ptr() for t in (*call.params, *call.grads, *itertools.chain(*call.states.values()))}
        own = [t for c in found for t in (*c.params, *c.grads, *itertools.chain(*c.states.values()))]
        copies[:] = [weakref.ref(t) for t in own if t.data_ptr() not in given]
        step_on_device(call, *args, **kwargs)

    monkeypatch.setattr(cuda_on_host, "upload", upload)
    monkeypatch.setattr(cuda_on_host, "step_on_device", step_and_look)
    results = []
    for backend in ("native", "reference"):
        params = make_params(shapes, torch.float32)
        optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend, max_norm=max_norm)
        for n in range(4):
            uploads.clear()
            set_grads(params, shapes, n) if n != 3 else None
            optimizer.step()
            if backend == "native" and n > 0:
                # Where the copies lie, and the gradients, is up to the allocator; all else is as it was.
                assert {*uploads} <= {"column"}
        results.append(everything(optimizer))
        assert not any(copy() is not None for copy in copies)
    assert copies or (shapes is SLABS and max_norm is None)
    assert_same_bits(*results)


@pytest.mark.parametrize("aligned", [True, False])
def test_elements_beyond_2_to_the_31(aligned):
    # One block steps the last chunk of a parameter of 2**33 + 1000 elements, of which only that chunk is in memory.
    first, count = 2**33, 1000
    values = torch.zeros(count + 4)
    start = (-values.data_ptr() // 4) % 4 + (0 if aligned else 1)
    param, grad = values[start : start + count], torch.ones(count + 8)
    step_count = torch.tensor(6.0, dtype=torch.float64)
    row = torch.zeros(1, table.COLUMNS, dtype=torch.int64)
    row[0, table.PARAM] = param.data_ptr() - 4 * first
    row[0, table.GRAD] = grad.data_ptr() + (-grad.data_ptr()) % 16 - 4 * first
    row[0, table.STEP] = step_count.data_ptr()
    row[0, table.NUMEL], row[0, table.PARAM_INDEX] = first + count, 3
    row[0, table.FIRST_CHUNK] = -(first // table.CHUNK)
    chunk, prepared = torch.zeros(2, dtype=torch.int32), torch.zeros(2 * table.PREPARED_BYTES, dtype=torch.uint8)
    module().step(
        "sgd", [0.0, 0.0], [False], 0, [*(t.data_ptr() for t in (row, chunk, prepared)), 0, 0, 0], 1, 1, 0, 0,
        [(1.0, 0, False), (0.5, 0, False), (1.0, 0, False), (1.0, 0, False), (0.0, 0, False), (1.0, 0, False)], 0.0,
        False, False, SEED, 0, 0, False, False, 0,
    )  # fmt: skip
    kept = keep_bits(numpy.arange(first, first + count), SEED, 7, 3) < 32768
    assert torch.equal(param != 0, torch.from_numpy(kept))
    assert values.count_nonzero() == param.count_nonzero()
    assert step_count == 7


@pytest.mark.parametrize("count", [-1.0, -5.0, 0.5, float("nan"), 2.0**53])
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
def test_a_tensor_without_a_count_of_steps_is_left_alone(case, count):
    check_left_alone(case, count, step)
