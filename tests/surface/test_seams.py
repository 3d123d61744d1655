"""What other modules may ask of an optimizer: slopes, negative gradient weights; and what a rule may: scalar states."""

import copy
import io
import pickle
import re

import pytest
import torch
from helpers import Snapshot, assert_same_bits, call_of, everything, leaves, random_grads, same_bits, train
from inventory import RICH

import lrtricks_fused as lrt

CPU = torch.device("cpu")
KEY = "allow_negative_grad_weight"  # of groups in checkpoints of earlier versions
by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])


# -- slopes ------------------------------------------------------------------------------------------------------------


@both_backends
@by_name
def test_a_step_adds_its_slope_where_it_is_asked_to(case, backend):
    params, twins = leaves((700,), (5, 3)), leaves((700,), (5, 3))
    optimizer, plain = (case.make(p, keep_prob=0.5, backend=backend) for p in (params, twins))
    train(plain, range(4))
    slopes, given = {}, {CPU: torch.full((), 2.0, dtype=torch.float64)}
    train(optimizer, range(1))
    with optimizer.add_slopes_to(slopes):
        train(optimizer, range(1, 2))
        first = slopes[CPU].clone()
        with optimizer.add_slopes_to(given):
            before = [param.detach().double() for param in params]
            train(optimizer, range(2, 3))
        moved = zip(before, params, strict=True)
        expected = 2 + sum((p.grad.double() * (old - p.detach().double())).sum() for old, p in moved)
        assert same_bits(slopes[CPU], first) and first != 0
    train(optimizer, range(3, 4))
    assert same_bits(slopes[CPU], first)
    torch.testing.assert_close(given[CPU], expected, rtol=1e-6, atol=1e-6)  # the sum is taken in float32 lanes
    assert_same_bits(everything(optimizer), everything(plain))


def test_a_failed_step_ends_the_sum_too():
    optimizer, slopes = lrt.SGD(leaves((3,))), {}
    with pytest.raises(ValueError, match="lr=-1"), optimizer.add_slopes_to(slopes):
        optimizer.param_groups[0]["lr"] = -1.0
        train(optimizer, range(1))
    optimizer.param_groups[0]["lr"] = 1.0
    train(optimizer, range(1))
    assert not slopes


# -- negative gradient weights -----------------------------------------------------------------------------------------


@both_backends
@by_name
def test_a_negative_weight_is_that_of_the_negated_gradient_once_it_is_allowed(case, backend):
    results = []
    for sign in (1.0, -1.0):
        (param,) = leaves((700,))
        optimizer = case.make([param], keep_prob=0.5, backend=backend)
        random_grads([param], 0)
        param.grad *= sign
        optimizer.param_groups[0]["grad_weight"] = 0.75 * sign
        if sign < 0:
            before = Snapshot(optimizer)
            with pytest.raises(ValueError, match=re.escape("Invalid grad_weight=-0.75: must be at least 0")):
                optimizer.step()
            before.assert_unchanged()
            optimizer.allow_negative_grad_weight = True
        optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


def negative(**options):
    optimizer = lrt.Adam(leaves((700,), (5,)), keep_prob=0.5, **options)
    lrt.GradientWeight(optimizer, lrt.constant(-0.5), 4, allow_negative=True)
    train(optimizer, range(2))
    return optimizer


def test_a_checkpoint_of_a_negative_weight_holds_no_extra_key_and_continues():
    optimizer, fresh = negative(), lrt.Adam(leaves((700,), (5,)))
    saved = optimizer.state_dict()
    assert KEY not in saved["param_groups"][0] and KEY not in optimizer.defaults
    fresh.load_state_dict(saved)
    assert fresh.allow_negative_grad_weight
    for opt in (optimizer, fresh):
        with torch.no_grad():
            for param, start in zip(opt.param_groups[0]["params"], leaves((700,), (5,), seed=1), strict=True):
                param.copy_(start)
        train(opt, range(2, 4))
    assert_same_bits(everything(fresh), everything(optimizer))


@pytest.mark.parametrize("weight", [-0.5, 0.5])
@pytest.mark.parametrize("how", ["load", "group", "pickle"])
def test_the_key_of_earlier_versions_is_understood_and_dropped(how, weight):
    old = {"grad_weight": weight, KEY: True}
    optimizer = lrt.Adam(leaves((700,)))
    if how == "group":
        optimizer = lrt.Adam([{"params": leaves((700,)), **old}])
    elif how == "load":
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0].update(old)
        optimizer.load_state_dict(saved)
        assert saved["param_groups"][0][KEY]  # the caller's own
    else:
        optimizer.param_groups[0].update(old)
        optimizer = pickle.loads(pickle.dumps(optimizer))
    assert optimizer.allow_negative_grad_weight and KEY not in optimizer.param_groups[0]
    optimizer.param_groups[0]["grad_weight"] = -2.0
    train(optimizer, range(1))


def test_a_load_that_fails_allows_nothing():
    optimizer, saved = lrt.Adam(leaves((700,), (5,))), negative().state_dict()
    saved["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        optimizer.add_param_group({"params": leaves((3,)), "lr": -1.0, KEY: True})
    assert not optimizer.allow_negative_grad_weight


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_allows_what_its_original_does(copier):
    for optimizer in (negative(), lrt.Adam(leaves((3,)))):
        assert copier(optimizer).allow_negative_grad_weight == optimizer.allow_negative_grad_weight


def test_it_is_allowed_through_a_wrapper_until_the_schedule_is_removed():
    optimizer = lrt.SGD(leaves((5,)), lr=0.1)
    weights = lrt.GradientWeight(lrt.LossGrad(optimizer), lrt.constant(-1.0), 4, allow_negative=True)
    train(optimizer, range(1))
    weights.remove()
    assert not optimizer.allow_negative_grad_weight


def test_a_schedule_that_takes_no_negative_weight_leaves_it_as_it_is():
    optimizer = lrt.SGD(leaves((5,)), lr=0.1)
    optimizer.allow_negative_grad_weight = True
    lrt.GradientWeight(optimizer, lrt.constant(0.5), 4).remove()
    assert optimizer.allow_negative_grad_weight


# -- states of one number per parameter --------------------------------------------------------------------------------


class Product(lrt.Adam):
    """Has torch.optim.NAdam's mu_product beside the states of Adam's rule, whose record does not know it."""

    def _state_names(self, group):
        return {**super()._state_names(group), "mu_product": True}

    def _scalar_states(self, group):
        return {"mu_product": 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_scalar_state_starts_at_its_value_and_reaches_the_call(dtype):
    params = leaves((700,), (), dtype=dtype)
    optimizer = Product(params, amsgrad=True)
    random_grads(params, 0)
    call = call_of(optimizer)
    assert list(call.states) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    for param, product in zip(params, call.scalar_states["mu_product"], strict=True):
        assert product is optimizer.state[param]["mu_product"]
        assert same_bits(product, torch.ones((), dtype=torch.float64))
        product.mul_(0.5)
    assert call_of(optimizer).scalar_states["mu_product"][0] == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [False, True])
def test_nadams_mu_product_is_loaded_as_float64(dtype, number):
    params = leaves((700,), (5, 3), dtype=dtype)
    twin = torch.optim.NAdam(params)
    train(twin, range(3))
    saved, expected = copy.deepcopy(twin.state_dict()), float(twin.state[params[0]]["mu_product"])
    for state in saved["state"].values():
        assert state["mu_product"].dtype == torch.float32 and 0 < expected < 1
        if number:  # as old versions of torch save it
            state["mu_product"] = float(state["mu_product"])
    optimizer = Product(leaves((700,), (5, 3), dtype=dtype))
    optimizer.load_state_dict(saved)
    for state in optimizer.state.values():
        assert same_bits(state["mu_product"], torch.tensor(expected, dtype=torch.float64))
        assert state["step"] == 3 and state["exp_avg"].dtype == torch.float32


def test_a_scalar_state_survives_a_checkpoint():
    params = leaves((700,))
    optimizer, fresh = Product(params), Product(leaves((700,)))
    random_grads(params, 0)
    call = call_of(optimizer)
    call.scalar_states["mu_product"][0].fill_(1 / 3)
    call.steps[0].fill_(1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    (state,) = fresh.state.values()
    assert same_bits(state["mu_product"], torch.tensor(1 / 3, dtype=torch.float64))
    assert state["mu_product"] is not call.scalar_states["mu_product"][0]


@pytest.mark.parametrize("value", [float("nan"), torch.ones(2), "1", torch.ones((), device="meta"), True])
def test_what_is_no_number_is_refused(value):
    params = leaves((700,))
    optimizer = Product(params)
    random_grads(params, 0)
    call_of(optimizer)
    saved, before = copy.deepcopy(optimizer.state_dict()), Snapshot(optimizer)
    saved["state"][0]["mu_product"] = value
    with pytest.raises(ValueError, match=r"Invalid state_dict: mu_product=.*: must be a finite number"):
        optimizer.load_state_dict(saved)
    before.assert_unchanged()
    del saved["state"][0]["mu_product"]
    with pytest.raises(ValueError, match="its state has no mu_product"):
        optimizer.load_state_dict(saved)
    del optimizer.state[params[0]]["mu_product"]
    optimizer.state[params[0]]["step"].fill_(1)
    with pytest.raises(ValueError, match="but no mu_product"):
        optimizer.step()
