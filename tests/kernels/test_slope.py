"""The slope of a step, <grad, displacement>: right, and the same bits by every backend, thread count and layout."""

import pytest
import torch
from helpers import assert_same_bits, everything
from inventory import DTYPES, RICH
from tensors import LAYOUTS, TensorCase, make_params, set_grads

import lrtricks_fused as lrt
from lrtricks_fused.step.keep import TILE
from lrtricks_fused.step.sums import SLOPE_COLUMNS

CPU = torch.device("cpu")
CHUNK = 16 * TILE
SHAPES = [
    TensorCase((0,)), TensorCase(()), TensorCase((65,)), TensorCase((513,)), TensorCase((CHUNK + 1300,)),
    TensorCase((2 * CHUNK,)),
]  # fmt: skip
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)


def run(case, dtype, backend, shapes=SHAPES, keep_prob=0.5, steps=2, **arguments):
    """Slopes of some steps, and all parameters and states after them."""
    params = make_params(shapes, dtype.dtype)
    optimizer = case.make(params, keep_prob=keep_prob, state_dtype=dtype.state_dtype, backend=backend, **arguments)
    total: dict[torch.device, torch.Tensor] = {}
    slopes = []
    for step in range(steps):
        set_grads(params, shapes, step)
        with optimizer.add_slopes_to(total):
            optimizer.step()
        slopes.append(total[CPU].clone())
    return [*slopes, *everything(optimizer)]


@by_dtype
@by_case
def test_native_equals_reference(case, dtype, isa):
    shapes = [*SHAPES, *LAYOUTS]
    assert_same_bits(run(case, dtype, "native", shapes), run(case, dtype, "reference", shapes))


@by_dtype
@by_case
def test_cuda_on_host_equals_reference(case, dtype, on_host):
    unaligned = [*SHAPES, LAYOUTS[0]]
    assert_same_bits(run(case, dtype, "native", unaligned), run(case, dtype, "reference", unaligned))


@pytest.mark.parametrize("keep_prob", [0.0, 1.0])
def test_without_draws(keep_prob):
    results = [run(RICH[1], DTYPES[0], backend, keep_prob=keep_prob) for backend in ("native", "reference")]
    assert_same_bits(*results)
    assert (results[0][0] == 0) == (keep_prob == 0)


def test_more_chunks_than_columns():
    shapes = [TensorCase((3,))] * (2 * SLOPE_COLUMNS + 5)
    assert_same_bits(*(run(RICH[0], DTYPES[0], backend, shapes) for backend in ("native", "reference")))


def test_thread_count_changes_nothing(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(RICH[1], DTYPES[0], "native", [TensorCase((300_001,)), *LAYOUTS]))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_asking_for_the_slope_changes_nothing_else():
    params = make_params(SHAPES, torch.float32)
    optimizer = RICH[1].make(params, keep_prob=0.5, backend="native")
    for step in range(2):
        set_grads(params, SHAPES, step)
        optimizer.step()
    assert_same_bits(everything(optimizer), run(RICH[1], DTYPES[0], "native")[2:])


@by_case
def test_is_the_displacement_along_the_unscaled_gradient(case):
    generator = torch.Generator().manual_seed(3)
    params = [torch.randn(n, dtype=torch.float64, generator=generator).requires_grad_() for n in (700, 33)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.2, "keep_prob": 0.3, "grad_weight": 0.5}]
    optimizer = case.make(groups, keep_prob=0.7)
    slopes: dict[torch.device, torch.Tensor] = {}
    optimizer.grad_scale = torch.tensor(8.0)
    expected = 0.0
    for _ in range(3):
        before = [param.detach().clone() for param in params]
        grads = [torch.randn(param.shape, dtype=torch.float64, generator=generator) for param in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad * 8.0
        with optimizer.add_slopes_to(slopes):
            optimizer.step()
        expected += sum((g * (b - p.detach())).sum() for g, b, p in zip(grads, before, params, strict=True))
    torch.testing.assert_close(slopes[CPU], expected, rtol=1e-12, atol=0)  # sums of 2,200 terms


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_skipped_step_has_none(backend):
    param = torch.ones(700, requires_grad=True)
    param.grad = torch.ones(700)
    optimizer = lrt.SGD([param], lr=1.0, backend=backend)
    slopes = {CPU: torch.tensor(3.0, dtype=torch.float64)}
    for found_inf, expected in ((1.0, 3), (0.0, 703)):
        optimizer.found_inf = torch.tensor(found_inf)
        with optimizer.add_slopes_to(slopes):
            optimizer.step()
        assert slopes[CPU] == expected


@pytest.mark.parametrize("slope", [torch.zeros(2, dtype=torch.float64), torch.zeros(()), torch.zeros(0)])
def test_a_wrong_slope_is_an_error(slope):
    param = torch.ones(7, requires_grad=True)
    param.grad = torch.ones(7)
    optimizer = lrt.SGD([param], lr=1.0, backend="native")
    with pytest.raises(ValueError, match=r"Invalid slopes\[cpu\]=tensor"), optimizer.add_slopes_to({CPU: slope}):
        optimizer.step()
    assert torch.equal(param, torch.ones(7)) and param not in optimizer.state
