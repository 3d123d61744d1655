"""Gradient centralization: right against torch, and the same bits by every backend, thread count and layout."""

import copy
from contextlib import nullcontext

import pytest
import torch
from helpers import assert_same_bits, clones, everything, leaves, random_grads, train
from inventory import DTYPES, FULL, RICH, TWINS
from tensors import LAYOUTS, TensorCase, channels_last, make_params, set_grads, transposed, unaligned

import lrtricks_fused as lrt

CPU = torch.device("cpu")
# Slices around the borders of partial sums and tiles, and no slices at all; of chunks, and of the most partial sums.
SIZES = [
    (), (7,), (0, 5), (5, 0), (5, 0, 3), (4, 1), (1, 1), (3, 7), (6, 63), (5, 64), (5, 65), (3, 129), (40, 3, 3, 3),
    (3, 513), (2, 3, 40, 5), (2, 4500),
]  # fmt: skip
SHAPES = [TensorCase(size) for size in SIZES]
LONG = [TensorCase(size) for size in [(2, 8191), (3, 8192), (2, 8193), (9000, 2), (1, 64 * 4096 + 300)]]
STRIDED = [
    *LAYOUTS, TensorCase((3, 20, 30), transposed, transposed), TensorCase((2, 4500), unaligned, unaligned),
    TensorCase((3, 40, 9, 9), channels_last, channels_last), TensorCase((700, 9), grad=transposed),
]  # fmt: skip
# Slices of whole rows of 64 elements: within a block of the CPU's, over its end, longer than two; and unaligned ones.
ROWS = [TensorCase(size) for size in [(7, 64), (3, 128), (70, 576), (9, 64, 9, 8), (3, 70016)]]
ROWS += [TensorCase((70, 576), unaligned, unaligned), TensorCase((70, 576), grad=transposed)]
PLAIN = [TensorCase((513, 7)), TensorCase((2, 9001)), TensorCase((1300,))]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)


def run(case, dtype, backend, shapes=SHAPES, steps=2, slope=True, **arguments):
    """Slopes of some steps, if asked for, and all parameters and states after them."""
    params = make_params(shapes, dtype.dtype)
    arguments = {"keep_prob": 0.5, "state_dtype": dtype.state_dtype, "centralize": True, **arguments}
    optimizer = case.make(params, backend=backend, **arguments)
    total: dict[torch.device, torch.Tensor] = {}
    slopes = []
    for step in range(steps):
        set_grads(params, shapes, step)
        with optimizer.add_slopes_to(total) if slope else nullcontext():
            optimizer.step()
        slopes += [tensor.clone() for tensor in total.values()]
    return [*slopes, *everything(optimizer)]


@by_dtype
@by_case
def test_native_equals_reference(case, dtype):
    for shapes in (SHAPES, STRIDED):
        assert_same_bits(run(case, dtype, "native", shapes), run(case, dtype, "reference", shapes))


@pytest.mark.parametrize("keep_prob", [0.5, 1.0] if FULL else [0.5])
@by_dtype
@by_case
def test_slices_of_whole_rows(case, dtype, keep_prob):
    for slope in (False, True):
        arguments = dict(shapes=ROWS, slope=slope, keep_prob=keep_prob)
        assert_same_bits(*(run(case, dtype, backend, **arguments) for backend in ("native", "reference")))


@by_dtype
def test_long_slices(dtype):
    assert_same_bits(*(run(RICH[0], dtype, backend, LONG, steps=1) for backend in ("native", "reference")))


@by_dtype
def test_long_slices_of_cuda_on_host(dtype, on_host):
    assert_same_bits(*(run(RICH[0], dtype, backend, LONG, steps=1) for backend in ("native", "reference")))


@pytest.mark.parametrize("keep_prob", [0.0, 0.5, 1.0])
def test_every_instruction_set_equals_reference(isa, keep_prob):
    for slope in (False, True):
        arguments = dict(slope=slope, keep_prob=keep_prob)
        results = [
            run(RICH[1], DTYPES[0], backend, [*SHAPES, *ROWS], **arguments) for backend in ("native", "reference")
        ]
        assert_same_bits(*results)


@by_dtype
@by_case
def test_cuda_on_host_equals_reference(case, dtype, on_host):
    shapes = [*SHAPES, LAYOUTS[0], TensorCase((2, 4500), unaligned, unaligned)]
    assert_same_bits(run(case, dtype, "native", shapes), run(case, dtype, "reference", shapes))


def test_thread_count_changes_nothing(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(RICH[1], DTYPES[0], "native", [TensorCase((300, 1001)), *SHAPES, *STRIDED]))
        results[-1] += run(RICH[1], DTYPES[0], "native", ROWS, slope=False)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.usefixtures("torch_numbers_float64")
# A tensor lr is float32, which torch and we take apart from each other in the ninth digit.
@pytest.mark.parametrize("case", [c for c in TWINS if isinstance(c.kwargs["lr"], float)], ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_is_torchs_step_with_centralized_gradients(case, backend):
    params = leaves((5, 7), (4, 3, 3, 3), (6,), (), (2, 700), dtype=torch.float64)
    twins = clones(params)
    ours, torchs = case.make(params, centralize=True, backend=backend), case.make_twin(twins)
    for step in range(7):
        random_grads(params, step)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad.clone()
            if twin.dim() > 1:
                twin.grad -= twin.grad.mean(dim=tuple(range(1, twin.dim())), keepdim=True)
        ours.step()
        torchs.step()
    # Means of 700 doubles in another order differ by 1e-16; RAdam and centered RMSprop magnify it by a thousand.
    torch.testing.assert_close(params, twins, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_slice_of_equal_gradients_does_not_move(backend):
    params = leaves((3, 1), (4, 6), (2, 5, 5))
    before = clones(params)
    optimizer = lrt.SGD(params, lr=1.0, centralize=True, backend=backend)
    for param in params:  # whole numbers: their sums and means are exact
        param.grad = torch.arange(1.0, len(param) + 1).view(-1, *[1] * (param.dim() - 1)).expand(param.shape)
    optimizer.step()
    assert_same_bits(params, before)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_parameters_of_one_dimension_and_gradients_stay_as_they_are(backend):
    results = []
    for centralize in (False, True):
        params = leaves((700,), (), (3, 40))
        optimizer = lrt.Adam(params, centralize=centralize, backend=backend)
        random_grads(params, 0)
        grads = [param.grad.clone() for param in params]
        optimizer.step()
        assert_same_bits([param.grad for param in params], grads)
        results.append(params)
    assert_same_bits(results[0][:2], results[1][:2])
    assert not torch.equal(results[0][2], results[1][2])


def test_the_slope_is_that_of_the_gradient_itself():
    param = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimizer = lrt.Adam([param], lr=0.1, centralize=True, keep_prob=0.5, weight_decay=0.1)
    slopes: dict[torch.device, torch.Tensor] = {}
    before = param.detach().clone()
    random_grads([param], 0)
    with optimizer.add_slopes_to(slopes):
        optimizer.step()
    expected = (param.grad * (before - param.detach())).sum()
    torch.testing.assert_close(slopes[CPU], expected, rtol=1e-12, atol=0)  # a sum of 1,200 terms


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_each_group_has_its_own(backend):
    params, alone = leaves((30, 20), (30, 20)), leaves((30, 20), (30, 20))
    groups = [{"params": params[:1], "centralize": True}, {"params": params[1:]}]
    train(lrt.SGD(groups, lr=0.1, momentum=0.9, backend=backend), range(3))
    train(lrt.SGD(alone, lr=0.1, momentum=0.9, backend=backend), range(3))
    assert_same_bits(params[1:], alone[1:])
    assert not torch.equal(params[0], alone[0])


@pytest.mark.parametrize("first", [False, True])
def test_may_change_between_steps(first):
    results = []
    for backend in ("native", "reference"):
        params = make_params(PLAIN, torch.float32)
        optimizer = lrt.AdamW(params, centralize=first, keep_prob=0.5, backend=backend)
        for step in range(4):
            optimizer.param_groups[0]["centralize"] = first == (step < 2)
            set_grads(params, PLAIN, step)
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


def test_gradients_that_come_and_go_and_overflows():
    results = []
    for backend in ("native", "reference"):
        params = make_params(PLAIN, torch.float32)
        optimizer = lrt.RMSprop(params, centralize=True, keep_prob=0.5, backend=backend)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        for step in range(5):
            set_grads(params, PLAIN, step)
            params[step % 2].grad = None
            optimizer.found_inf.fill_(step in (0, 3))
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


def test_checkpoints_keep_it_and_torchs_leave_it():
    params = leaves((5, 7))
    optimizer = lrt.Adam(params, centralize=True)
    train(optimizer, range(2))
    resumed = lrt.Adam(clones(params))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[0]["centralize"] is True
    twin = torch.optim.Adam(clones(params))
    train(twin, range(2))
    optimizer.load_state_dict(twin.state_dict())
    assert optimizer.param_groups[0]["centralize"] is True


def test_under_lossgrad():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(50, size, generator=generator, dtype=torch.float64) for size in (8, 3))
    model = torch.nn.Linear(8, 3, dtype=torch.float64)
    tuned = lrt.LossGrad(lrt.SGD(model.parameters(), lr=1e-3, centralize=True))
    for _ in range(5):
        before = [param.detach().clone() for param in model.parameters()]
        loss = tuned.step(lambda: torch.nn.functional.mse_loss(model(inputs), targets))
        with torch.no_grad():
            trial = torch.nn.functional.mse_loss(model(inputs), targets)
        moved = zip(model.parameters(), before, strict=True)
        slope = sum((param.grad * (old - param.detach())).sum() for param, old in moved)
        torch.testing.assert_close(tuned.ratio, (trial - loss + slope) / slope, rtol=1e-6, atol=1e-9)  # cancellation
