"""Metrics, summed in a step: right, and the same bits by every backend, thread count and layout."""

import math

import pytest
import torch
from helpers import Snapshot, assert_same_bits, call_of, everything, leaves, random_grads, train
from inventory import DTYPES, RICH
from tensors import LAYOUTS, TensorCase, make_params, set_grads

import lrtricks_fused as lrt
from lrtricks_fused.optim.sums import metrics
from lrtricks_fused.step import native
from lrtricks_fused.step.call import SUMS
from lrtricks_fused.step.keep import TILE

CPU = torch.device("cpu")
SHAPES = [
    TensorCase((0,)), TensorCase(()), TensorCase((65,)), TensorCase((513,)), TensorCase((16 * TILE + 1300,)),
    TensorCase((3, 64)), TensorCase((9, 65)),
]  # fmt: skip
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])


def run(case, dtype, backend, shapes=SHAPES, keep_prob=0.5, device=CPU, **arguments):
    """Metrics and slopes of two steps, and all parameters and states after them."""
    params = make_params(shapes, dtype.dtype, devices=[device] * len(shapes))
    optimizer = case.make(
        params, keep_prob=keep_prob, state_dtype=dtype.state_dtype, backend=backend, track_metrics=True, **arguments
    )
    told = []
    for step in range(2):
        set_grads(params, shapes, step)
        slopes: dict[torch.device, torch.Tensor] = {}
        with optimizer.add_slopes_to(slopes):
            optimizer.step()
        told += [slopes[device], *optimizer.metrics().values()]
    return [*told, *everything(optimizer)]


@by_dtype
@by_case
def test_native_equals_reference(case, dtype, isa):
    shapes = [*SHAPES, *LAYOUTS]
    assert_same_bits(run(case, dtype, "native", shapes), run(case, dtype, "reference", shapes))


@by_case
def test_with_centralized_gradients(case, isa):
    assert_same_bits(*(run(case, DTYPES[0], backend, centralize=True) for backend in ("native", "reference")))


def test_thread_count_changes_nothing(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(RICH[1], DTYPES[0], "native", [TensorCase((300_001,)), *LAYOUTS]))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@by_case
def test_asking_changes_nothing_else(case):
    params = make_params(SHAPES, torch.float32)
    optimizer = case.make(params, keep_prob=0.5, backend="native")
    for step in range(2):
        set_grads(params, SHAPES, step)
        optimizer.step()
    assert_same_bits(everything(optimizer), run(case, DTYPES[0], "native")[10:])


@both_backends
@by_dtype
def test_are_what_they_say(dtype, backend):
    params = make_params([TensorCase((70_001,)), TensorCase((5, 7))], dtype.dtype)
    optimizer = lrt.Adam(
        [{"params": params[:1]}, {"params": params[1:], "keep_prob": 0.2}],
        lr=1e-4, keep_prob=0.6, backend=backend, track_metrics=True, state_dtype=dtype.state_dtype,
    )  # fmt: skip
    assert optimizer.metrics() == {}
    for step in range(1, 4):
        set_grads(params, [TensorCase((70_001,)), TensorCase((5, 7))], step)
        before = [param.detach().clone() for param in params]
        optimizer.step()
        told = {name: float(value) for name, value in optimizer.metrics().items()}
        masks = [optimizer.keep_mask(param, step) for param in params]
        elements = sum(param.numel() for param in params)
        assert told["keep_rate"] == sum(int(mask.sum()) for mask in masks) / elements
        changed = sum(int((p != b).sum()) for p, b in zip(params, before, strict=True))  # neither is 0 or NaN
        assert told["change_rate"] == changed / elements
        assert told["change_rate"] <= told["keep_rate"]
        updates = [(p.detach().double() - b.double()).square().sum() for p, b in zip(params, before, strict=True)]
        # The eight rows of a lane and up to eight lanes are added in float32: at most 16 roundings, each of 2**-24.
        assert told["update_norm"] == pytest.approx(math.sqrt(sum(updates)), rel=1e-6)
        norm = math.sqrt(sum(param.detach().double().square().sum() for param in params))
        assert told["param_norm"] == pytest.approx(norm, rel=1e-6)


def test_bfloat16_loses_small_updates():
    param = torch.ones(4096, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = lrt.SGD([param], lr=1e-4, track_metrics=True)  # below half an ulp of 1
    optimizer.step()
    told = optimizer.metrics()
    assert told["keep_rate"] == 1
    assert told["change_rate"] == 0
    assert told["update_norm"] == 0


@both_backends
def test_a_zeros_sign_counts_as_a_change(backend):
    param = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    param.grad = torch.tensor([1.0, 0.0, 0.0])
    optimizer = lrt.SGD([param], lr=0.0, backend=backend, track_metrics=True, weight_decay=0.0, maximize=True)
    with torch.no_grad():
        param[0] = -0.0
    optimizer.step()  # -0 - 0 * -1 is -0 + 0, which is 0
    assert optimizer.metrics()["change_rate"] == torch.tensor(1 / 3, dtype=torch.float64)


@both_backends
def test_of_a_skipped_step_are_nan(backend):
    optimizer = lrt.Adam(leaves((70,)), backend=backend, track_metrics=True)
    optimizer.found_inf = torch.tensor(1.0)
    train(optimizer, range(1))
    assert all(value.isnan() for value in optimizer.metrics().values())
    optimizer.found_inf = torch.tensor(0.0)
    train(optimizer, range(1))
    assert not any(value.isnan() for value in optimizer.metrics().values())


def test_may_be_asked_at_some_steps():
    optimizer = lrt.Adam(leaves((70,)), keep_prob=0.5)
    with pytest.raises(ValueError, match="track_metrics=False"):
        optimizer.metrics()
    train(optimizer, range(1))
    optimizer.track_metrics = True
    train(optimizer, range(1, 2))
    told = optimizer.metrics()
    assert 0 < told["keep_rate"] < 1
    optimizer.track_metrics = False
    train(optimizer, range(2, 3))
    with pytest.raises(ValueError, match="track_metrics=False"):
        optimizer.metrics()


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_bad_argument(value):
    with pytest.raises((ValueError, TypeError), match=f"Invalid track_metrics={value!r}"):
        lrt.SGD(leaves((3,)), track_metrics=value)


def test_steps_in_backward_have_none():
    model = torch.nn.Linear(3, 2)
    optimizer = lrt.SGD(model.parameters(), track_metrics=True)
    with pytest.raises(ValueError, match="track_metrics=True"):
        lrt.step_in_backward(model, optimizer)


def test_compiled_steps_tell_the_same():
    told = []
    for compiled in (False, True):
        optimizer = lrt.Adam(leaves((700,), (5,)), keep_prob=0.5, track_metrics=True)
        step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True) if compiled else optimizer.step
        for number in range(3):
            random_grads(list(optimizer.param_groups[0]["params"]), number)
            step()
        told.append([*optimizer.metrics().values(), *everything(optimizer)])
    assert_same_bits(*told)


@pytest.mark.parametrize("sums", [torch.zeros(2, dtype=torch.float64), torch.zeros(6), torch.zeros(12).double()[::2]])
def test_wrong_sums_are_refused_by_the_op(sums):
    params = leaves((7,))
    optimizer = lrt.Adam(params, backend="native")
    train(optimizer, range(1))
    call, before = call_of(optimizer), Snapshot(optimizer)
    call.sums = sums
    with pytest.raises(RuntimeError, match="Invalid sums"):
        native.native_step(call)
    before.assert_unchanged()


def test_norms_are_the_nearest_to_the_roots_of_their_sums():
    # torch's own root on a CPU is off by an ulp for one number in a hundred, and then differs from a GPU's.
    for square in torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        sums = torch.ones(len(SUMS), dtype=torch.float64) * square
        assert metrics(sums)["param_norm"].item() == math.sqrt(square) == metrics(sums)["update_norm"].item()
