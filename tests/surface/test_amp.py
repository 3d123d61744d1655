"""GradScaler's protocol on the CPU: unscaling inside the step, overflow, and what an overflow must leave alone.

The scaler hands over grad_scale and found_inf; nothing is unscaled beforehand.
"""

import copy
import pickle
import re

import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves, random_grads, train
from inventory import RICH

from lrtricks_fused.step.rule import RULES

by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])
both_ways = pytest.mark.parametrize("fused", [True, None])  # the step unscales and skips, or the scaler does


def scaler(scale=1024.0):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)


def scaled_step(optimizer, grad_scaler, step, overflow=False):
    """One step with gradients multiplied by the scale, as scaler.scale(loss).backward() leaves them."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    random_grads(params, step)
    scale = float(grad_scaler.scale(torch.ones(())))  # also initialises the scaler
    for param in params:
        param.grad *= scale
    if overflow:
        params[-1].grad.view(-1)[0] = float("inf")
    grad_scaler.step(optimizer)
    grad_scaler.update()


@by_name
@both_backends
@both_ways
def test_scaled_training_is_unscaled_training(case, backend, fused):
    # A power of two changes no bit; a scale of 1000 only roundings.
    plain = case.make(leaves((700,), (5,)), keep_prob=0.5, grad_weight=0.7, backend=backend)
    train(plain, range(3))
    for scale in (1024.0, 2.0**-3):
        optimizer = case.make(leaves((700,), (5,)), keep_prob=0.5, grad_weight=0.7, backend=backend, fused=fused)
        grad_scaler = scaler(scale)
        for step in range(3):
            scaled_step(optimizer, grad_scaler, step)
        assert_same_bits(everything(optimizer), everything(plain))
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


STARTS = {name: start for rule in RULES.values() for name, start in rule.scalar_states}


def values(optimizer):
    """Everything, with the states of parameters that have none yet counted as the values they start from."""
    tensors = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            tensors.append(param.detach().clone())
            own = optimizer.state.get(param, {})
            tensors += [v.clone() for name, v in own.items() if name != "identity" and (v != STARTS.get(name, 0)).any()]
    return tensors


@by_name
@both_backends
@both_ways
@pytest.mark.parametrize("overflows", [{0}, {2}, {0, 1, 3}])
def test_an_overflow_is_as_if_the_step_had_not_been(case, backend, overflows, fused):
    optimizer = case.make(leaves((700,), (5,)), keep_prob=0.5, backend=backend, fused=fused)
    plain = case.make(leaves((700,), (5,)), keep_prob=0.5, backend=backend)
    grad_scaler = scaler()
    for step in range(5):
        before = values(optimizer)
        scaled_step(optimizer, grad_scaler, step, overflow=step in overflows)
        if step in overflows:
            assert_same_bits(values(optimizer), before)
        else:
            train(plain, range(step, step + 1))
    assert float(grad_scaler.get_scale()) == 1024.0 / 2 ** len(overflows)
    assert_same_bits(everything(optimizer), everything(plain))
    assert {int(state["step"]) for state in optimizer.state.values()} == {5 - len(overflows)}


@by_name
@both_backends
@both_ways
def test_unscale_before_the_step_is_not_repeated(case, backend, fused):
    optimizer = case.make(leaves((700,)), keep_prob=0.5, backend=backend, fused=fused)
    plain = case.make(leaves((700,)), keep_prob=0.5, backend=backend)
    grad_scaler = scaler()
    (param,) = optimizer.param_groups[0]["params"]
    for step in range(2):
        random_grads([param], step)
        param.grad *= float(grad_scaler.scale(torch.ones(())))
        grad_scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([param], 1e9)
        grad_scaler.step(optimizer)
        grad_scaler.update()
    train(plain, range(2))
    # clip_grad_norm_ multiplies by min(1, max_norm / norm) = 1: exact.
    assert_same_bits(everything(optimizer), everything(plain))


@by_name
def test_any_scale_divides_the_gradient(case):
    # 1/1000 is rounded once in double, the product once in fp32: a gradient's relative error is 2 ulp.
    plain = case.make(leaves((700,), dtype=torch.float64))
    optimizer = case.make(leaves((700,), dtype=torch.float64), fused=True)
    grad_scaler = scaler(1000.0)
    for step in range(3):
        scaled_step(optimizer, grad_scaler, step)
    train(plain, range(3))
    for left, right in zip(everything(optimizer), everything(plain), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-14)


@both_backends
def test_overflow_before_the_first_step_keeps_dampenings_first_step(backend):
    # torch's fused SGD has had this wrong: momentum_buffer exists after the skipped step, so dampening applied.
    case = RICH[0]
    optimizer = case.make(leaves((50,)), nesterov=False, dampening=0.5, weight_decay=0.0, backend=backend, fused=True)
    grad_scaler = scaler()
    scaled_step(optimizer, grad_scaler, 0, overflow=True)
    scaled_step(optimizer, grad_scaler, 1)
    (param,) = optimizer.param_groups[0]["params"]
    buffer = optimizer.state[param]["momentum_buffer"]
    assert torch.equal(buffer, param.grad / 512)


@pytest.mark.parametrize("copied", [lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@by_name
def test_the_scaler_leaves_its_work_to_fused_steps_only(case, copied):
    for fused in (True, False, None):
        assert copied(case.make(leaves((3,)), fused=fused))._step_supports_amp_scaling is (fused is True)


@both_backends
def test_the_whole_protocol_with_a_model(backend):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 1).to(torch.bfloat16)
    features = torch.randn(64, 6, dtype=torch.bfloat16)
    optimizer = RICH[1].ours(model.parameters(), lr=0.05, keep_prob=0.5, backend=backend)
    grad_scaler = scaler(2.0**10)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = ((model(features) - features[:, :1]) ** 2).float().mean()
        grad_scaler.scale(loss).backward()
        grad_scaler.step(optimizer)
        grad_scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@both_backends
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.0, TypeError, "=2.0"),
        (True, TypeError, "=True"),
        ("2", TypeError, "='2'"),
        (torch.ones(2), ValueError, "of shape (2,)"),
        (torch.tensor(2j), ValueError, "of dtype torch.complex64"),
        (torch.tensor(2.0).to_sparse(), ValueError, "of layout torch.sparse_coo"),
        (torch.ones((), device="meta"), ValueError, "on meta"),
    ],
)
def test_what_no_scaler_says_is_refused(backend, name, value, error, text):
    optimizer = RICH[1].make(leaves((700,), (5,)), backend=backend)
    for steps in (0, 1, 9):  # the last ones are repeated
        train(optimizer, range(steps))
        random_grads([param for group in optimizer.param_groups for param in group["params"]], steps)
        before = Snapshot(optimizer)
        setattr(optimizer, name, value)
        with pytest.raises(error, match=re.escape(f"Invalid {name}{' ' if text[0] != '=' else ''}{text}")):
            optimizer.step()
        delattr(optimizer, name)
        before.assert_unchanged()


def test_a_scale_of_zero_is_divided_by():
    stepped = []
    for backend in ("native", "reference"):
        optimizer = RICH[0].make(leaves((700,)), backend=backend, max_norm=1.0)
        optimizer.grad_scale = torch.zeros(())
        train(optimizer, range(2))
        stepped.append([*everything(optimizer), optimizer.grad_norm])
    assert_same_bits(*stepped)
    assert stepped[0][-1] == torch.inf
