"""Gradient centralization by the Triton kernels: the bits of the reference.

The scratch of the sums and means is poisoned before every step, see triton_worker.py.
"""

import pytest
import torch
from helpers import assert_same_bits, call_of, everything, leaves, train
from inventory import DTYPES, FULL, RICH, SEED
from tensors import GUARD, LAYOUTS, TensorCase, guards_of, make_params, set_grads, unaligned
from test_slope import run
from test_triton_slope import poison_scratch
from triton_worker import interpreted, late_step

import lrtricks_fused as lrt
from lrtricks_fused.step import table
from lrtricks_fused.step.call import MAX_SLICE_PARTIALS, PARTIAL_ELEMENTS

BACKENDS = ("triton", "reference")
CHUNK = table.CHUNK
ADAM = next(case for case in RICH if case.ours is lrt.Adam)
RING = next(case for case in RICH if "momentum_window" in case.kwargs)
# Tensors without slices begin the list, end it and stand between; a chunk of many slices, a slice of many chunks.
SHAPES = [TensorCase(shape) for shape in [
    (), (0, 5), (4, 1), (7,), (3, 7), (5, 0), (6, 64), (5, 65), (9, 1000), (2, 3, 40, 5), (2, 9000), (700,), (0, 3),
]]  # fmt: skip
FEW = [TensorCase((9, 1000)), TensorCase((3,)), TensorCase((3, 7))]


@pytest.mark.parametrize("case", RICH if FULL else RICH[::3], ids=lambda c: c.name)
@interpreted
def test_every_rule_equals_reference(case):
    assert_same_bits(*(late_step(case, DTYPES[0], 0.5, backend, SHAPES, 2, centralize=True) for backend in BACKENDS))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@interpreted
def test_every_dtype_equals_reference(dtype):
    for case, shapes in ((ADAM, SHAPES), (RING, FEW[1:])):
        assert_same_bits(*(late_step(case, dtype, 1.0, backend, shapes, 2, centralize=True) for backend in BACKENDS))


@interpreted
def test_a_slice_of_more_elements_than_its_lanes_are_made_for():
    (param,) = leaves((1, PARTIAL_ELEMENTS * MAX_SLICE_PARTIALS + 156))
    results = []
    for backend in BACKENDS:
        values = param.detach().clone().requires_grad_()
        values.grad = param.detach()
        lrt.SGD([values], lr=1.0, centralize=True, backend=backend).step()
        results.append([values])
    assert_same_bits(*results)


@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[2]], ids=lambda d: d.name)
@interpreted
def test_the_slope_is_along_the_raw_gradient(dtype):
    poison_scratch()
    for case in (ADAM, RING):
        assert_same_bits(*(run(case, dtype, backend, FEW, steps=1, centralize=True) for backend in BACKENDS))


@interpreted
def test_strided_operands():
    assert_same_bits(*(late_step(ADAM, DTYPES[0], 0.5, b, LAYOUTS, earlier=1, centralize=True) for b in BACKENDS))


@interpreted
def test_any_alignment_and_nothing_outside():
    shapes = [TensorCase((9, 1000), unaligned, unaligned), TensorCase((5, 65), unaligned, unaligned)]
    results = []
    for backend in BACKENDS:
        params = make_params(shapes, torch.float32)
        optimizer = ADAM.make(params, centralize=True, backend=backend)
        set_grads(params, shapes, 0)
        optimizer.step()
        assert all((guards_of(param) == GUARD).all() for param in params)
        results.append(everything(optimizer))
    assert_same_bits(*results)


@interpreted
def test_groups_that_differ_and_parameters_without_gradients():
    shapes = [TensorCase(shape) for shape in [(5, 65), (3, 5), (130,), (5, 65), (4, 3), (9,)]]
    results = []
    for backend in BACKENDS:
        params = make_params(shapes, torch.float32)
        groups = [dict(params=params[:3], centralize=False), dict(params=params[3:], keep_prob=0.3)]
        optimizer = ADAM.make(groups, keep_prob=0.5, seed=SEED, centralize=True, backend=backend)
        for n in range(4):
            set_grads(params, shapes, n)
            params[n % 3].grad = params[5 - n % 3].grad = None
            for group in groups if n == 3 else ():
                group["centralize"] = not group["centralize"]
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("count", [1, 2, 3, 130])
@interpreted
def test_many_tensors(count):
    # The searches' rows; nearly all without elements, which cost no program of step_kernel.
    shapes = [TensorCase((3, 5) if i in (0, 1, count - 2) else (5, 0) if i % 2 else (0,)) for i in range(count)]
    assert_same_bits(*(late_step(ADAM, DTYPES[0], 0.5, b, shapes, earlier=1, centralize=True) for b in BACKENDS))


@interpreted
def test_found_inf_touches_nothing():
    results = []
    for backend in BACKENDS:
        optimizer = ADAM.make(leaves((5, 65), (4,)), keep_prob=0.5, centralize=True, backend=backend)
        optimizer.grad_scale = torch.tensor(3.0)
        for n in range(3):
            optimizer.found_inf = torch.tensor(float(n != 1))
            before = [tensor.clone() for tensor in everything(optimizer)]
            train(optimizer, range(n, n + 1))
            assert n != 2 or all(map(torch.equal, everything(optimizer), before))
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@interpreted
def test_special_gradients(dtype):
    inf, nan, most = float("inf"), float("nan"), torch.finfo(dtype).max
    tiny = torch.finfo(dtype).smallest_normal
    rows = [[inf, 1.0, -0.0], [nan, 2.0, 3.0], [-0.0, -0.0, -0.0], [most, -most, -most], [tiny, tiny / 2, -tiny / 4],
            [inf, -inf, 0.0], [1.0, 1 + 2**-7, 1 + 2**-10]]  # fmt: skip
    values = torch.tensor(rows).to(dtype)
    results = []
    for backend in BACKENDS:
        params = [torch.zeros_like(given).requires_grad_() for given in (values, values.flatten())]
        params[0].grad, params[1].grad = values.clone(), values.flatten()
        lrt.SGD(params, lr=1.0, centralize=True, backend=backend).step()
        results.append(params)
    assert_same_bits(*results)


@interpreted
def test_is_the_gradient_less_its_mean():
    params = leaves((2, 3, 40, 5), (6, 64), (5, 1), (7,), dtype=torch.float64)
    optimizer = lrt.SGD(params, lr=1.0, centralize=True, backend="triton")
    with torch.no_grad():
        for param in params:
            param.zero_()
    train(optimizer, range(1))
    for param in params[:3]:
        mean = param.grad.mean(dim=tuple(range(1, param.dim())), keepdim=True)
        # torch adds up in another order: sums of at most 600 terms of N(0, 1), with an error of 2**-53 * 25 each, / 600
        torch.testing.assert_close(-param.detach(), param.grad - mean, rtol=1e-15, atol=1e-15)
    assert torch.equal(-params[3].detach(), params[3].grad)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1000, 4097, 5461, CHUNK - 1, CHUNK, CHUNK + 1, 2**31 - 1, 2**33 + 5])
@interpreted
def test_the_slice_of_every_element(length):
    # Zeros step by zeros less means that are their slices' numbers, in chunks anywhere in a tensor.
    from lrtricks_fused.triton_kernels import launch

    begins = torch.tensor([0, 37 * CHUNK, 2**31 - CHUNK, 2**40 + CHUNK])
    places = torch.arange(len(begins))
    params, grad = torch.zeros(len(begins), CHUNK, dtype=torch.float64), torch.zeros(CHUNK, dtype=torch.float64)
    counts = torch.zeros(len(begins), dtype=torch.float64)
    expected = (begins.unsqueeze(1) + torch.arange(CHUNK)) // length
    means = (expected[:, :1] + torch.arange(CHUNK)).double()
    fake = table.AddressTable.__new__(table.AddressTable)
    fake.rows = rows = torch.zeros(len(begins), table.COLUMNS, dtype=torch.int64)
    rows[:, table.PARAM] = params.data_ptr() + 8 * (places * CHUNK - begins)
    rows[:, table.GRAD] = grad.data_ptr() - 8 * begins
    rows[:, table.STEP] = counts.data_ptr() + 8 * places
    rows[:, table.NUMEL], rows[:, table.SLICE_LENGTH] = begins + CHUNK, length
    rows[:, table.FIRST_CHUNK] = places - begins // CHUNK
    rows[:, table.FIRST_SLICE] = places * CHUNK - expected[:, 0]
    fake.chunk_tensors, fake.prepared = places.int(), torch.empty(table.PREPARED_BYTES * 5, dtype=torch.uint8)
    fake.slices, fake.slice_scratch = 1, None
    optimizer = lrt.SGD([params.requires_grad_()], lr=1.0, centralize=True, backend="triton")
    params.grad = params.detach()
    call = call_of(optimizer)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(launch, "_launch_means", lambda *_: means.data_ptr())
        launch._run(call, fake)
    assert torch.equal(params, expected.double())
