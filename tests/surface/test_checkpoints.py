"""state_dict: exact resume, exchange with torch.optim in both directions, dtypes, hooks, and what does not fit.

Tolerances as in test_against_torch.py.
"""

import copy
import io

import numpy
import pytest
import torch
from helpers import (
    SCALAR_STATES,
    Snapshot,
    assert_same_bits,
    clones,
    everything,
    leaves,
    random_grads,
    same_bits,
    train,
)
from inventory import DTYPES, RICH, TOLERANCE, TWINS, implementations

import lrtricks_fused as lrt

by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
SHAPES = [(700,), (5, 3), ()]


def through_a_file(state_dict):
    """What torch.load makes of a saved state_dict; weights_only refuses anything but plain data."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@by_name
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_exact_resume(case, dtype):
    def make(params, **extra):
        return case.make(params, state_dtype=dtype.state_dtype, **extra)

    params = clones([param.to(dtype.dtype) for param in leaves(*SHAPES)])
    whole = make(clones(params), keep_prob=0.5, grad_weight=torch.tensor(0.7), seed=2**64 - 2)
    train(whole, range(10))
    first = make(params, keep_prob=0.5, grad_weight=torch.tensor(0.7), seed=2**64 - 2)
    train(first, range(5))
    saved = through_a_file(first.state_dict())
    second = make(clones(params), seed=1)  # other seed, other keep_prob: all comes from the checkpoint
    second.load_state_dict(saved)
    train(second, range(5, 10))
    assert_same_bits(everything(second), everything(whole))


@pytest.mark.parametrize("case", TWINS, ids=lambda c: c.name)
def test_state_dict_keys_are_torchs(case):
    mine, theirs = leaves(*SHAPES), leaves(*SHAPES)
    optimizer, twin = case.make(mine), case.make_twin(theirs)
    train(optimizer, range(2))
    train(twin, range(2))
    ours, torchs = optimizer.state_dict(), twin.state_dict()
    assert ours.keys() == torchs.keys()
    own = {"keep_prob", "grad_weight", "centralize", "seed"} | ({"momentum_window"} if case.ours is lrt.SGD else set())
    own |= {"fused"}  # torch's RMSprop and RAdam have none
    assert set(ours["param_groups"][0]) == set(torchs["param_groups"][0]) | own
    for index in range(len(SHAPES)):
        # SGD's step, which torch does not count, is what the keep bits need.
        names = {name for name, value in torchs["state"].get(index, {}).items() if value is not None}
        assert ours["state"][index].keys() == names | {"step", "identity"}


def continue_alike(left, right, steps=range(4, 8)):
    train(left, steps)
    train(right, steps)
    tolerance = TOLERANCE[torch.float32]
    for a, b in zip(left.param_groups[0]["params"], right.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance.rtol, atol=tolerance.atol)


EXCHANGES = [(case, how) for case in TWINS for how in implementations(case.twin, case.kwargs)]
exchange = pytest.mark.parametrize(("case", "how"), EXCHANGES, ids=lambda v: v.name if hasattr(v, "name") else str(v))


@exchange
def test_torchs_checkpoint_continues_here(case, how):
    theirs = leaves(*SHAPES)
    twin = case.make_twin(theirs, **how)
    train(twin, range(4))
    optimizer = case.ours(clones(theirs), lr=9.0)  # all hyper-parameters come from the checkpoint
    optimizer.load_state_dict(through_a_file(twin.state_dict()))
    assert optimizer.param_groups[0]["keep_prob"] == 1.0
    continue_alike(optimizer, twin)


@exchange
def test_our_checkpoint_continues_in_torch(case, how):
    mine = leaves(*SHAPES)
    optimizer = case.make(mine)
    train(optimizer, range(4))
    twin = case.make_twin(clones(mine), **how)
    saved = through_a_file(optimizer.state_dict())
    saved["param_groups"][0].update(how)
    twin.load_state_dict(saved)
    continue_alike(twin, optimizer)


@pytest.mark.parametrize("case", [case for case in RICH if case.twin], ids=lambda c: c.name)
def test_old_checkpoints_without_newer_keys(case):
    theirs = leaves(*SHAPES)
    twin = case.make_twin(theirs, maximize=False)
    train(twin, range(4))
    saved = copy.deepcopy(twin.state_dict())
    for group in saved["param_groups"]:
        for newer in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
            if newer != "decoupled_weight_decay" or case.ours not in (lrt.RAdam, lrt.NAdam):
                group.pop(newer, None)
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])  # a Python number before torch 1.12
    optimizer = case.ours(clones(theirs))
    optimizer.load_state_dict(saved)
    continue_alike(optimizer, twin)


def test_sgd_momentum_buffer_none():
    (param,) = leaves((700,))
    saved = torch.optim.SGD([param], lr=0.1, momentum=0.9, dampening=0.5).state_dict()
    saved["state"][0] = {"momentum_buffer": None}  # as torch.optim.SGD saves before its first step
    optimizer = lrt.SGD([param], lr=0.1)
    optimizer.load_state_dict(saved)
    random_grads([param], 0)
    optimizer.step()
    assert same_bits(optimizer.state[param]["momentum_buffer"], param.grad)  # undampened: a first step
    assert int(optimizer.state[param]["step"]) == 1


def test_an_adam_checkpoint_does_not_couple_adamws_decay():
    params = leaves((700,))
    adam = torch.optim.Adam(params, lr=0.02, weight_decay=0.1)
    train(adam, range(4))
    mine, theirs = lrt.AdamW(clones(params)), torch.optim.AdamW(clones(params))
    for optimizer in (mine, theirs):
        optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    continue_alike(mine, theirs)


@by_name
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_states_of_bf16_parameters_keep_their_dtype(case, state_dtype):
    params = clones([param.bfloat16() for param in leaves(*SHAPES)])
    optimizer = case.make(params, state_dtype=state_dtype)
    train(optimizer, range(3))
    fresh = case.make(clones(params), state_dtype=state_dtype)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits(everything(fresh), everything(optimizer))
    for state in fresh.state.values():
        assert {value.dtype for name, value in state.items() if name not in SCALAR_STATES} == {
            state_dtype or torch.float32
        }
        assert state["step"].dtype == torch.float64


def test_a_bf16_checkpoint_of_torch_gets_the_wanted_state_dtype():
    (theirs,) = clones([leaves((700,))[0].bfloat16()])
    twin = torch.optim.Adam([theirs])
    train(twin, range(2))
    for state_dtype in (None, torch.bfloat16):
        optimizer = lrt.Adam(clones([theirs]), state_dtype=state_dtype)
        optimizer.load_state_dict(twin.state_dict())
        (state,) = optimizer.state.values()
        assert state["exp_avg"].dtype == (state_dtype or torch.float32)
        assert torch.equal(state["exp_avg"].float(), twin.state[theirs]["exp_avg"].float())
        train(optimizer, range(1))


@by_name
def test_loading_does_not_alias_or_change_what_is_loaded(case):
    optimizer = case.make(leaves(*SHAPES), lr=torch.tensor(0.01), keep_prob=torch.tensor(0.5))
    train(optimizer, range(2))
    saved = through_a_file(optimizer.state_dict())
    before = copy.deepcopy(saved)
    fresh = case.make(clones(optimizer.param_groups[0]["params"]))
    fresh.load_state_dict(saved)
    fresh.param_groups[0]["lr"].fill_(0.5)
    train(fresh, range(2, 4))
    assert saved["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        assert_same_bits(list(saved["state"][index].values()), list(state.values()))


def test_load_hooks_see_the_dict_and_the_result():
    params = clones([param.bfloat16() for param in leaves(*SHAPES)])
    optimizer = lrt.Adam(params, keep_prob=0.5)
    train(optimizer, range(3))
    saved, seen = optimizer.state_dict(), []
    fresh = lrt.Adam(clones(params))

    def before(opt, state_dict):
        seen.append(("before", len(opt.state), int(state_dict["state"][0]["step"])))
        changed = copy.deepcopy(state_dict)
        changed["param_groups"][0]["lr"] = 0.25
        return changed

    def after(opt):
        state = opt.state[opt.param_groups[0]["params"][0]]
        seen.append(("after", state["exp_avg"].dtype, float(state["exp_avg"].sum())))

    fresh.register_load_state_dict_pre_hook(before)
    fresh.register_load_state_dict_post_hook(after)
    for _ in range(2):  # our own hooks are gone after a load, the user's stay
        seen.clear()
        fresh.load_state_dict(state_dict=saved)
        exp_avg = optimizer.state[params[0]]["exp_avg"]
        # The number of parameters known before is 0 in the first load and all in the second.
        assert [entry[0] for entry in seen] == ["before", "after"]
        assert seen[1][1:] == (torch.float32, float(exp_avg.sum()))
        assert fresh.param_groups[0]["lr"] == 0.25
        assert fresh.param_groups[0]["keep_prob"] == 0.5


def test_state_dict_hooks():
    optimizer = lrt.Adam(leaves((3,)))
    optimizer.register_state_dict_post_hook(lambda opt, state_dict: {**state_dict, "mark": 1})
    assert optimizer.state_dict()["mark"] == 1


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("start", [2**24 - 1, 2**24, 2**24 + 1, 2**32 + 5, 2**40])
def test_the_step_count_does_not_stall(start, backend):
    for case in RICH:
        (param,) = leaves((700,))
        optimizer = case.make([param], keep_prob=0.5, backend=backend)
        train(optimizer, range(1))
        saved = optimizer.state_dict()
        saved["state"][0]["step"] = torch.tensor(float(start), dtype=torch.float64)
        optimizer.load_state_dict(saved)
        for step in range(start + 1, start + 4):
            before = param.detach().clone()
            random_grads([param], 1)
            optimizer.step()
            assert int(optimizer.state[param]["step"]) == step
            assert torch.equal(param != before, optimizer.keep_mask(param, step))


def mismatches():
    """(name, function that spoils a state_dict)."""

    def spoil(change):
        def apply(saved):
            saved = copy.deepcopy(saved)
            change(saved)
            return saved

        return apply

    return {
        "a group missing": spoil(lambda s: s["param_groups"].pop()),
        "a group too many": spoil(lambda s: s["param_groups"].append(dict(s["param_groups"][0], params=[9]))),
        "a parameter missing": spoil(lambda s: s["param_groups"][0]["params"].pop()),
        "a parameter too many": spoil(lambda s: s["param_groups"][1]["params"].append(9)),
        "shape": spoil(lambda s: next(iter(s["state"].values())).update(exp_avg=torch.zeros(3))),
        "last shape": spoil(lambda s: list(s["state"].values())[-1].update(exp_avg_sq=torch.zeros(3))),
        "keep_prob": spoil(lambda s: s["param_groups"][1].update(keep_prob=1.5)),
        "lr": spoil(lambda s: s["param_groups"][1].update(lr=-1.0)),
        "betas": spoil(lambda s: s["param_groups"][0].update(betas=(0.9, 1.0))),
    }


@pytest.mark.parametrize("how", mismatches())
def test_a_state_dict_that_does_not_fit_changes_nothing(how):
    params = leaves(*SHAPES)
    optimizer = lrt.Adam([{"params": params[:2]}, {"params": params[2:], "keep_prob": 0.3}])
    train(optimizer, range(2))
    other = lrt.Adam([{"params": clones(params[:2])}, {"params": clones(params[2:])}], lr=0.7)
    train(other, range(3))
    before = Snapshot(optimizer)
    with pytest.raises(ValueError):
        optimizer.load_state_dict(mismatches()[how](other.state_dict()))
    before.assert_unchanged()
    train(optimizer, range(2, 4))  # and it still works


@pytest.mark.parametrize("cls", [lrt.Adam, lrt.NAdam, lrt.Lion, lrt.RMSprop])
def test_a_state_without_a_step_is_refused(cls):
    param = torch.nn.Parameter(torch.ones(5))
    optimizer = cls([param], lr=0.1)
    param.grad = torch.ones(5)
    optimizer.step()
    state_dict = optimizer.state_dict()
    del state_dict["state"][0]["step"]
    with pytest.raises(ValueError, match="has no step"):
        optimizer.load_state_dict(state_dict)


@pytest.mark.parametrize("kind", [numpy.float64, numpy.float32])
def test_numbers_of_numpy_are_pythons_from_the_start(kind):
    """torch's schedulers copy them, into the group and into their own state."""
    optimizer = lrt.Adam(leaves((3,)), lr=kind(0.01), betas=(kind(0.5), 0.9))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    train(optimizer, range(2))
    scheduler.step()
    saved = through_a_file([optimizer.state_dict(), scheduler.state_dict()])
    assert type(saved[0]["param_groups"][0]["initial_lr"]) is float
    assert saved[0]["param_groups"][0]["betas"] == (float(kind(0.5)), 0.9)


def test_halves_that_are_not_loaded_are_told():
    params = [p.detach().bfloat16().requires_grad_() for p in leaves((300,))]
    optimizer = lrt.Adam(params, master="split")
    train(optimizer, range(2))
    saved = optimizer.state_dict()
    for other in (lrt.Adam([p.detach().float().requires_grad_() for p in params]), lrt.Adam(clones(params))):
        with pytest.warns(UserWarning, match="param_low of 1 parameters is not loaded"):
            other.load_state_dict(saved)
