"""Average momentum (SGD's momentum_window): the mean of the last gradients, against numpy and by its exact cases."""

import copy

import numpy
import pytest
import torch
from helpers import Snapshot, assert_same_bits, clones, everything, leaves, random_grads, same_bits, train
from inventory import DTYPES, SEED

import lrtricks_fused as lrt

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_backend = pytest.mark.parametrize("backend", ["native", "reference"])
SHAPES = [(1100,), (5, 7), (), (0,)]


@by_backend
@by_dtype
def test_constant_gradients_give_exactly_that_gradient(dtype, backend):
    (param,) = leaves((700,), dtype=dtype.dtype)
    grad = leaves((700,), dtype=dtype.dtype, seed=3)[0].detach()
    optimizer = lrt.SGD([param], lr=0.25, momentum_window=6, state_dtype=dtype.state_dtype, backend=backend)
    plain = lrt.SGD([twin := param.detach().clone().requires_grad_()], lr=0.25, backend=backend)
    for _ in range(15):
        param.grad = grad.clone()
        twin.grad = grad.clone()
        optimizer.step()
        plain.step()
        assert same_bits(param, twin)


@by_backend
@pytest.mark.parametrize("keep_prob", [1.0, 0.4])
@pytest.mark.parametrize("window", [1, 3, 10, 500])
def test_mean_of_the_last_gradients(window, keep_prob, backend):
    # The first steps divide by their own number; a dropped element's gradients stay in the mean.
    params = leaves((700,), (5, 7), dtype=torch.float64)
    optimizer = lrt.SGD(params, lr=0.1, momentum_window=window, weight_decay=0.05, keep_prob=keep_prob, seed=SEED,
                        backend=backend)  # fmt: skip
    values = [param.detach().numpy().copy() for param in params]
    gradients = [[] for _ in params]
    for step in range(1, 15):
        random_grads(params, step)
        optimizer.step()
        for i, param in enumerate(params):
            gradients[i].append(param.grad.numpy() + 0.05 * values[i])
            mean = sum(gradients[i][-window:]) / len(gradients[i][-window:])
            keep = optimizer.keep_mask(param, step).numpy()
            values[i] = numpy.where(keep, values[i] - 0.1 * mean, values[i])
            numpy.testing.assert_allclose(param.detach().numpy(), values[i], rtol=1e-12, atol=1e-14)
            assert optimizer.state[param].keys() == {"step", "identity", "window_buffer"}
            assert optimizer.state[param]["window_buffer"].shape == (window, *param.shape)


@by_backend
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.state_dtype is None], ids=lambda d: d.name)
def test_a_window_of_one_is_plain_sgd(dtype, backend):
    # Where states are as wide as the computation; else the gradient is rounded on its way into the ring.
    flags = dict(lr=0.1, weight_decay=0.05, keep_prob=0.5, maximize=True, backend=backend)
    params = leaves(*SHAPES, dtype=dtype.dtype)
    params[0].data[:4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    twins = clones(params)
    average, plain = lrt.SGD(params, momentum_window=1, **flags), lrt.SGD(twins, **flags)
    for step in range(4):
        for optimizer in (average, plain):
            train(optimizer, range(step, step + 1))
        assert_same_bits(params, twins)


@by_backend
def test_nothing_of_an_old_gradient_is_left(backend):
    # A running sum would keep the error of 1e30 for ever.
    (param,) = leaves((100,))
    optimizer = lrt.SGD([param], lr=1.0, momentum_window=3, backend=backend)
    for value in (1e30, 0.5, 0.5, 0.5):
        param.grad = torch.full((100,), value)
        before = param.detach().clone()
        optimizer.step()
    assert torch.equal(param, before - 0.5)


@by_backend
def test_found_inf_does_not_advance_the_ring(backend):
    params = leaves(*SHAPES)
    twins = clones(params)
    optimizer, twin = (lrt.SGD(p, lr=0.1, momentum_window=3, keep_prob=0.5, backend=backend) for p in (params, twins))
    for step in range(8):
        random_grads(params, step)
        optimizer.found_inf = torch.tensor(float(step % 3 == 0))
        optimizer.step()
        if step % 3:
            train(twin, range(step, step + 1))
    assert_same_bits(everything(optimizer), everything(twin))


@by_dtype
@pytest.mark.parametrize("done", [2, 3, 7])
def test_resume_is_exact(done, dtype):
    def make(params):
        return lrt.SGD(params, lr=0.1, momentum_window=3, keep_prob=0.5, state_dtype=dtype.state_dtype)

    params = leaves(*SHAPES, dtype=dtype.dtype)
    whole, first = make(clones(params)), make(params)
    train(whole, range(10))
    train(first, range(done))
    saved = copy.deepcopy(first.state_dict())
    second = lrt.SGD(clones(params), lr=9.0, state_dtype=dtype.state_dtype)  # the window comes with the checkpoint
    second.load_state_dict(saved)
    train(second, range(done, 10))
    assert_same_bits(everything(second), everything(whole))


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
@by_backend
def test_the_ring_is_row_major_whatever_the_parameters_layout(layout, backend):
    (plain,) = leaves((2, 8, 9, 9))
    strided = plain.detach().clone()
    strided = strided.to(memory_format=torch.channels_last) if layout == "channels_last" else (
        strided.transpose(2, 3).contiguous().transpose(2, 3))  # fmt: skip
    strided.requires_grad_()
    optimizers = [lrt.SGD([p], lr=0.1, momentum_window=2, keep_prob=0.5, backend=backend) for p in (plain, strided)]
    for optimizer in optimizers:
        train(optimizer, range(5))
    assert not strided.is_contiguous()
    assert optimizers[1].state[strided]["window_buffer"].is_contiguous()
    assert_same_bits(everything(optimizers[0]), everything(optimizers[1]))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (dict(momentum=0.9), "momentum_window=3 with momentum=0.9, dampening=0 and nesterov=False"),
        (dict(dampening=0.1), "momentum_window=3 with momentum=0, dampening=0.1"),
        (dict(momentum=0.9, nesterov=True), "momentum_window=3 with momentum=0.9, dampening=0 and nesterov=True"),
    ],
)
def test_it_replaces_momentum(others, message):
    with pytest.raises(ValueError, match=message):
        lrt.SGD(leaves((3,)), momentum_window=3, **others)


@pytest.mark.parametrize("window", [0, -1, 2.0, True, "3"])
def test_bad_windows(window):
    with pytest.raises(ValueError, match="Invalid momentum_window="):
        lrt.SGD(leaves((3,)), momentum_window=window)


@by_backend
@pytest.mark.parametrize("before", [None, 4])
def test_the_window_of_stepped_parameters_cannot_change(before, backend):
    params = leaves((3,), (5,))
    optimizer = lrt.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, momentum_window=before,
                        backend=backend)  # fmt: skip
    train(optimizer, range(2))
    optimizer.param_groups[1]["momentum_window"] = 3
    random_grads(params, 2)
    snapshot = Snapshot(optimizer)
    with pytest.raises(ValueError, match=f"momentum_window=3: these .* with momentum_window={before}"):
        optimizer.step()
    snapshot.assert_unchanged()


def test_a_ring_of_another_size_is_not_loaded():
    params = leaves((3,))
    optimizer = lrt.SGD(params, lr=0.1, momentum_window=3)
    train(optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["window_buffer"] = torch.zeros(2, 3)
    snapshot = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"window_buffer has shape \(2, 3\), .* must be \(3, 3\)"):
        optimizer.load_state_dict(saved)
    snapshot.assert_unchanged()
