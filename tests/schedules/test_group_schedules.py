"""Random gradient, the keep probability, and what all group schedules share: resume, copies, removal, bad input."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves, random_grads, train
from inventory import RICH
from philox_numpy import philox4x32

import lrtricks_fused as lrt
from lrtricks_fused.step import keep

SEED = 0x123456789ABCDEF0
by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both = pytest.mark.parametrize("module", [lrt, torch.optim], ids=["ours", "torch"])


def run(optimizer, weights, steps):
    """Train with the gradients of steps, one weights.step() after each."""
    for step in range(steps):
        train(optimizer, range(step, step + 1))
        weights.step()


# -- random gradient ---------------------------------------------------------------------------------------------------


def words(seed, step, param=0):
    """Stream 3 by the independent generator of the tests."""
    counter = (0, 3 << 24, step % 2**32, param)
    return [int(word) / 2**32 for word in philox4x32(counter, (seed % 2**32, seed >> 32), 7)]


@pytest.mark.parametrize("seed", [0, 7, SEED, 2**64 - 1])
def test_uniform_is_stream_3(seed):
    for step in (1, 2, 1000, 2**32 - 1, 2**32 + 5):
        for param in (0, 3, 2**32 - 1):
            assert [keep.uniform(seed, step, param, word) for word in range(4)] == words(seed, step, param)
    assert keep.uniform(seed, 1) == keep.uniform(seed, 1, 0, 0)


def test_uniform_is_uniform_and_not_the_masks():
    draws = np.array([keep.uniform(SEED, step) for step in range(1, 4097)])
    counts = np.histogram(draws, bins=16, range=(0, 1))[0]
    assert ((counts - 256) ** 2 / 256).sum() < 44.3  # chi-squared with 15 degrees of freedom, p = 1e-4
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 4 / 64
    assert int(draws[0] * 2**32) & 0xFFFF != int(keep.keep_bits(1, SEED, 1, 0)[0])  # stream 0, same counter else


@both
def test_random_gradient_is_one_draw_per_step(module):
    weights = lrt.GradientWeight(module.SGD(leaves((3,))), lrt.random_gradient(seed=SEED), 4)
    for step in range(1, 8):  # past total_steps too: it does not depend on the progress
        assert weights.get_last_value() == words(SEED, step)[0]
        weights.step()


def test_random_gradient_of_a_share_of_the_steps():
    schedule = lrt.random_gradient(seed=SEED, probability=0.25)
    for step in range(1, 300):
        first, second, *_ = words(SEED, step)
        assert schedule.at_step(step) == (first if second < 0.25 else 1.0)
    weighted = sum(schedule.at_step(step) < 1 for step in range(1, 4097))
    assert abs(weighted - 1024) < 5 * math.sqrt(4096 * 0.25 * 0.75)
    assert {lrt.random_gradient(probability=0.0).at_step(step) for step in range(1, 99)} == {1.0}


# -- resume, copies, removal -------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("schedule", [lrt.linear(start=3, end=0.3), lrt.random_gradient(seed=9, probability=0.5)])
def test_resumes_bit_for_bit(module, schedule):
    def make(total_steps):
        params = leaves((700,))
        optimizer = module.Adam(params, lr=0.02)
        return params, optimizer, lrt.GradientWeight(optimizer, schedule, total_steps)

    params, optimizer, weights = make(7)
    run(optimizer, weights, 3)
    file = io.BytesIO()
    torch.save([params, optimizer.state_dict(), weights.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh, other, again = make(99)  # the state holds the number of steps
    with torch.no_grad():
        fresh[0].copy_(saved[0][0])
    other.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    assert again.get_last_value() == weights.get_last_value()
    for step in range(3, 9):
        for opt, weight in ((optimizer, weights), (other, again)):
            train(opt, range(step, step + 1))
            weight.step()
    assert_same_bits(everything(other), everything(optimizer))


@both
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_brings_its_optimizer_along(module, copier):
    optimizer = module.SGD(leaves((50,)), lr=0.1, momentum=0.9)
    weights = lrt.GradientWeight(optimizer, lrt.linear(start=3, end=0.3), 7)
    run(optimizer, weights, 3)
    twin = copier(weights)
    before = Snapshot(optimizer)
    for step in range(3, 6):
        train(twin.optimizer, range(step, step + 1))
        twin.step()
    before.assert_unchanged()
    assert weights.last_step == 3
    for step in range(3, 6):
        train(optimizer, range(step, step + 1))
        weights.step()
    assert_same_bits(everything(twin.optimizer), everything(optimizer))


@both
def test_removal_leaves_the_optimizer_as_without(module):
    params, twins = leaves((50,)), leaves((50,))
    optimizer, plain = module.SGD(params, lr=0.1), module.SGD(twins, lr=0.1)
    weights = lrt.GradientWeight(optimizer, lrt.constant(-3), 7, allow_negative=True)
    weights.remove()
    weights.remove()
    train(optimizer, range(3))
    train(plain, range(3))
    assert_same_bits(everything(optimizer), everything(plain))
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()
    assert weights.get_last_value() == 1
    for call in (weights.step, lambda: weights.load_state_dict({"last_step": 1, "total_steps": 2})):
        with pytest.raises(RuntimeError, match="GradientWeight was removed"):
            call()


def test_a_group_added_later_gets_it_with_the_next_step():
    params = leaves((5,), (7,))
    optimizer = lrt.SGD(params[:1], lr=0.1)
    weights = lrt.GradientWeight(optimizer, lrt.linear(start=3, end=-1), 4, allow_negative=True)
    optimizer.add_param_group({"params": params[1:]})
    for _ in range(4):
        weights.step()
    assert [group["grad_weight"] for group in optimizer.param_groups] == [-1, -1]
    train(optimizer, range(1))


# -- negative weights, bad arguments -----------------------------------------------------------------------------------


@by_name
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("tensor", [False, True])
def test_negative_weights_ascend_where_they_are_allowed(case, backend, tensor):
    results = []
    for sign in (1, -1):
        params = leaves((700,))
        weight = torch.tensor(1.0, dtype=torch.float64) if tensor else 1.0
        optimizer = case.make(params, backend=backend, keep_prob=0.5, weight_decay=0.3, grad_weight=weight)
        weights = lrt.GradientWeight(optimizer, lrt.linear(start=2 * sign, end=sign), 4, allow_negative=True)
        for step in range(4):
            random_grads(params, step)
            params[0].grad *= sign
            optimizer.step()
            weights.step()
        reloaded = case.make(leaves((700,)))
        reloaded.load_state_dict(optimizer.state_dict())  # the checkpoint says that it is allowed
        results.append(everything(optimizer))
    assert_same_bits(*results)


@both
@pytest.mark.parametrize("value", [-0.25, math.nan, math.inf, -math.inf])
def test_a_bad_weight_is_refused_when_it_comes_and_nothing_is_changed(module, value):
    optimizer = module.SGD(leaves((5,)), lr=0.1)
    weights = lrt.GradientWeight(optimizer, lambda r: 2.0 if r < 0.5 else value, 4)
    weights.step()
    before = Snapshot(optimizer)
    for call in (weights.step, lambda: weights.load_state_dict({"last_step": 3, "total_steps": 5})):
        with pytest.raises(ValueError, match=re.escape(f"grad_weight={value}")):
            call()
        before.assert_unchanged()
        assert (weights.state_dict(), weights.get_last_value()) == ({"last_step": 1, "total_steps": 4}, 2.0)
    with pytest.raises(ValueError, match=re.escape(f"grad_weight={value}")):
        lrt.GradientWeight(optimizer, lambda r: value, 4)
    before.assert_unchanged()


@both
def test_shapes_that_turn_negative_are_refused_at_construction(module):
    for schedule in (
        lrt.linear(start=2, end=-0.1),
        lrt.piecewise((0.4, 0.6), (1, -1, 1)),
        lrt.late(low=-0.2),
        lrt.trapezoid(high=-1.0),
        lrt.polynomial_k_decay(-1.0, 1.0),
    ):
        optimizer = module.SGD(leaves((5,)), lr=0.1)
        before = Snapshot(optimizer)
        with pytest.raises(ValueError, match="Invalid grad_weight=-"):
            lrt.GradientWeight(optimizer, schedule, 4)
        before.assert_unchanged()
        assert lrt.GradientWeight(optimizer, schedule, 4, allow_negative=True).get_last_value() == schedule(0)


def test_a_group_says_itself_that_negative_weights_are_allowed():
    (param,) = leaves((5,))
    lrt.SGD([{"params": [param], "grad_weight": -1.0, "allow_negative_grad_weight": True}], lr=0.1)
    with pytest.raises(ValueError, match=r"grad_weight=-1\.0"):
        lrt.SGD([{"params": [param], "grad_weight": -1.0, "allow_negative_grad_weight": False}], lr=0.1)
    with pytest.raises(ValueError, match="grad_weight=nan"):
        lrt.SGD([{"params": [param], "grad_weight": math.nan, "allow_negative_grad_weight": True}], lr=0.1)


@pytest.mark.parametrize("cls", [lrt.GradientWeight, lrt.KeepProb])
def test_bad_arguments(cls):
    optimizer = lrt.SGD(leaves((5,)))
    for total_steps, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"total_steps={total_steps}"):
            cls(optimizer, lrt.constant(), total_steps)
    for schedule in (2.0, None):
        with pytest.raises(TypeError, match=f"schedule={schedule}"):
            cls(optimizer, schedule, 4)
    with pytest.raises(TypeError, match="list"):
        cls([], lrt.constant(), 4)
    with pytest.raises(TypeError, match="'high'"):
        cls(optimizer, lambda r: "high", 4)
    schedule = cls(optimizer, lrt.constant(0.5), 4)
    for state in ({"last_step": -1, "total_steps": 4}, {"last_step": 1, "total_steps": 0}):
        with pytest.raises(ValueError, match=r"Invalid (last_step=-1|total_steps=0)"):
            schedule.load_state_dict(state)
    assert schedule.state_dict() == {"last_step": 0, "total_steps": 4}


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor(0.5), np.float64(0.5), 0.5])
def test_schedules_may_return_any_scalar(value):
    optimizer = lrt.SGD(leaves((5,)))
    lrt.GradientWeight(optimizer, lambda r: value, 4)
    assert type(optimizer.param_groups[0]["grad_weight"]) is float
    assert optimizer.param_groups[0]["grad_weight"] == 0.5


# -- the keep probability ----------------------------------------------------------------------------------------------


@by_name
def test_keep_prob_follows_its_schedule(case):
    tensor = torch.tensor(0.9, dtype=torch.float64)
    params = leaves((700,), (300,))
    optimizer = case.make([{"params": params[:1], "keep_prob": tensor}, {"params": params[1:]}], seed=SEED)
    schedule = lrt.KeepProb(optimizer, lrt.linear(start=0.25, end=0.75), 4)
    for step, value in enumerate([0.25, 0.375, 0.5, 0.625, 0.75, 0.75]):
        assert [float(group["keep_prob"]) for group in optimizer.param_groups] == [value, value]
        assert optimizer.param_groups[0]["keep_prob"] is tensor
        assert schedule.get_last_value() == value
        random_grads(params, step)
        before = [param.detach().clone() for param in params]
        optimizer.step()
        for param, old, numel in zip(params, before, (700, 300), strict=True):
            wanted = keep.keep_mask(param.shape, value, SEED, step + 1, 0 if numel == 700 else 1)
            assert torch.equal(param != old, wanted)
        schedule.step()
    schedule.remove()
    assert [float(group["keep_prob"]) for group in optimizer.param_groups] == [1, 1]


def test_keep_prob_is_ours_alone_and_a_probability():
    with pytest.raises(TypeError, match="Invalid optimizer of type SGD: its groups have no keep_prob"):
        lrt.KeepProb(torch.optim.SGD(leaves((5,))), lrt.constant(0.5), 4)
    optimizer = lrt.SGD(leaves((5,)))
    with pytest.raises(ValueError, match=r"keep_prob=2\.0"):
        lrt.KeepProb(optimizer, lrt.linear(), 4)
    schedule = lrt.KeepProb(optimizer, lambda r: 0.5 + 2 * r, 4)
    schedule.step()
    with pytest.raises(ValueError, match=r"keep_prob=1\.5"):
        schedule.step()
    assert (schedule.last_step, optimizer.param_groups[0]["keep_prob"]) == (1, 1.0)
