"""Parameter groups that are added to an optimizer, or taken out of it, after its scheduler was made."""

import copy
import io
import pickle

import pytest
import torch
from helpers import leaves, random_grads
from schedulers import CLOSE, SCHEDULERS
from torch.optim import lr_scheduler as torchs

import lrtricks_fused as lrt
from lrtricks_fused.schedules.subnetworks import SubnetworkLR

SGD = torch.optim.SGD
tensors = pytest.mark.parametrize("tensor", [False, True])
COPIERS = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}
copiers = pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS)


def group(lr, tensor=False, **options):
    lr = torch.tensor(lr, dtype=torch.float64) if tensor else lr
    return {"params": [torch.ones(2, requires_grad=True)], "lr": lr, **options}


def lrs_of(optimizer):
    return [float(g["lr"]) for g in optimizer.param_groups]


def advance(optimizer, scheduler, steps=1):
    rows = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rows.append(lrs_of(optimizer))
    return rows


# -- added -------------------------------------------------------------------------------------------------------------

TWINS = {  # with k = 1 each is torch's
    "polynomial": (lambda o: lrt.PolynomialKDecayLR(o, 9, k=1.0), lambda o: torchs.PolynomialLR(o, 9)),
    "power 2": (
        lambda o: lrt.PolynomialKDecayLR(o, 9, k=1.0, power=2.0),
        lambda o: torchs.PolynomialLR(o, 9, power=2.0),
    ),
    "cosine": (
        lambda o: lrt.CosineKDecayLR(o, 9, k=1.0, min_lr=0.001),
        lambda o: torchs.CosineAnnealingLR(o, 9, eta_min=0.001),
    ),
}


@tensors
@pytest.mark.parametrize(("ours", "theirs"), TWINS.values(), ids=TWINS)
@pytest.mark.parametrize("when", [0, 1, 5, 8])
def test_an_added_group_goes_on_as_with_torchs(ours, theirs, when, tensor):
    rows = []
    for make in (ours, theirs):
        optimizer = SGD([group(0.1, tensor)], lr=1.0)
        scheduler = make(optimizer)
        advance(optimizer, scheduler, when)
        optimizer.add_param_group(group(0.01, tensor))
        optimizer.add_param_group(group(0.7, tensor))
        rows.append(advance(optimizer, scheduler, 9 - when))
        assert scheduler.get_last_lr() == rows[-1][-1]
    for row, wanted in zip(*rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@tensors
def test_after_the_end_an_added_group_stays_as_with_torchs_polynomial(tensor):
    for make in (TWINS["polynomial"][0], lambda o: lrt.TanhLR(o, 9), TWINS["polynomial"][1]):
        optimizer = SGD([group(0.1, tensor)], lr=1.0)
        scheduler = make(optimizer)
        advance(optimizer, scheduler, 9)
        optimizer.add_param_group(group(0.01, tensor))
        assert [row[1] for row in advance(optimizer, scheduler, 3)] == [0.01] * 3
        assert optimizer.param_groups[0]["lr"] < 0.001


@tensors
@pytest.mark.parametrize(("cls", "kwargs", "formula"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_an_added_group_follows_the_shape_from_its_lr(cls, kwargs, formula, tensor):
    for when in (0, 1, 3):
        optimizer = SGD([group(0.4, tensor)], lr=1.0)
        scheduler = cls(optimizer, 7, **kwargs, min_lr=0.01)
        advance(optimizer, scheduler, when)
        optimizer.add_param_group(group(0.05, tensor))
        share = formula(when, 1.0, 0.0)  # of a trapezoid 0 at first: the lr is the peak
        peak = 0.01 + 0.04 / share if share else 0.05
        for t, row in enumerate(advance(optimizer, scheduler, 9 - when), start=when + 1):
            assert row == pytest.approx([formula(t, 0.4, 0.01), formula(t, peak, 0.01)], **CLOSE)


def test_with_a_min_lr_for_each_group_the_new_ones_must_be_appended():
    optimizer = SGD([group(0.4), group(0.2)], lr=1.0)
    scheduler = lrt.PolynomialKDecayLR(optimizer, 4, k=1.0, min_lr=[0.1, 0.05])
    advance(optimizer, scheduler)
    del optimizer.param_groups[0]
    optimizer.add_param_group(group(0.3))
    before = copy.deepcopy(scheduler.state_dict())
    optimizer.step()
    with pytest.raises(ValueError, match=r"Invalid min_lrs=\[0\.1, 0\.05\]: a group was added"):
        scheduler.step()
    assert scheduler.state_dict() == before and lrs_of(optimizer) == [0.1625, 0.3]
    scheduler.min_lrs.append(0.06)
    assert advance(optimizer, scheduler, 3)[-1] == [0.05, 0.06]


@tensors
def test_a_checkpoint_from_after_the_addition(tensor):
    def make(groups):
        optimizer = SGD([group(lr, tensor) for lr in groups], lr=1.0)
        return optimizer, lrt.CosineKDecayLR(optimizer, 9, min_lr=0.002)

    optimizer, scheduler = make([0.4])
    advance(optimizer, scheduler, 2)
    optimizer.add_param_group(group(0.05, tensor))
    advance(optimizer, scheduler, 2)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    wanted = advance(optimizer, scheduler, 6)
    for late in (False, True):  # the group is there when the state is loaded, or is added after
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, again = make([0.9] if late else [0.9, 0.9])
        if late:
            again.load_state_dict(saved[1])
            other.add_param_group(group(0.9, tensor))
            other.load_state_dict(saved[0])
        else:
            other.load_state_dict(saved[0])
            again.load_state_dict(saved[1])
        assert advance(other, again, 6) == wanted


@copiers
def test_copies_know_their_groups(copier):
    optimizer = SGD([group(0.4), group(0.1)], lr=1.0)
    scheduler = lrt.CosineKDecayLR(optimizer, 9, min_lr=[0.002, 0.001])
    advance(optimizer, scheduler, 2)
    twin, again = copier((optimizer, scheduler))
    for o, s in ((optimizer, scheduler), (twin, again)):
        del o.param_groups[0]
        assert s.optimizer is o
        assert advance(o, s, 7)[-1] == [0.001]


def test_added_while_the_warmup_runs():
    optimizer = SGD([group(0.4)], lr=1.0)
    warmup = torchs.LinearLR(optimizer, start_factor=0.5, total_iters=2)
    scheduler = torchs.SequentialLR(optimizer, [warmup, lrt.CosineKDecayLR(optimizer, 7, k=1.0)], milestones=[2])
    optimizer.add_param_group(group(0.1))
    rows = advance(optimizer, scheduler, 9)
    assert rows[1][1] > 0.1  # LinearLR's doing
    for row, start in zip(rows[1:], [rows[1]] * 8, strict=True):
        assert row[1] / start[1] == pytest.approx(row[0] / start[0], **CLOSE)


# -- removed, replaced -------------------------------------------------------------------------------------------------


@tensors
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("cls", "kwargs", "formula"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_groups_that_are_left_go_on(cls, kwargs, formula, place, tensor):
    bases, lows = [0.4, 0.05, 0.2], [0.01, 0.002, 0.03]
    for when in (0, 2):
        optimizer = SGD([group(lr, tensor) for lr in bases], lr=1.0)
        scheduler = cls(optimizer, 7, **kwargs, min_lr=lows)
        advance(optimizer, scheduler, when)
        del optimizer.param_groups[place]
        left = [pair for i, pair in enumerate(zip(bases, lows, strict=True)) if i != place]
        for t, row in enumerate(advance(optimizer, scheduler, 6), start=when + 1):
            assert row == pytest.approx([formula(t, base, low) for base, low in left], **CLOSE)
        assert len(scheduler.min_lrs) == len(scheduler.base_lrs) == 2


def test_other_parameters_or_other_dictionaries_are_the_same_groups():
    optimizer = SGD([group(0.4), group(0.1)], lr=1.0)
    scheduler = lrt.PolynomialKDecayLR(optimizer, 4, k=1.0, min_lr=[0.2, 0.05])
    advance(optimizer, scheduler)
    optimizer.param_groups[0]["params"] = leaves((3,))  # as DeepSpeed puts in its own
    advance(optimizer, scheduler)
    optimizer.load_state_dict(optimizer.state_dict())  # makes new dictionaries
    assert advance(optimizer, scheduler, 2)[-1] == [0.2, 0.05]


# -- sub-networks ------------------------------------------------------------------------------------------------------


@tensors
@pytest.mark.parametrize("name", ["a", "b"])
def test_subnetwork(name, tensor):
    optimizer = SGD([group(0.4, tensor, name="a")], lr=1.0)
    scheduler = SubnetworkLR(optimizer, "a", lambda step: 0.5**step)
    advance(optimizer, scheduler)
    optimizer.add_param_group(group(0.25, tensor, name=name))
    wanted = [[0.1, 0.125], [0.05, 0.0625]] if name == "a" else [[0.1, 0.25], [0.05, 0.25]]
    assert advance(optimizer, scheduler, 2) == wanted
    del optimizer.param_groups[0]
    assert advance(optimizer, scheduler) == [[0.03125 if name == "a" else 0.25]]


def test_subnetwork_at_a_factor_of_0():
    optimizer = SGD([group(0.4, name="a")], lr=1.0)
    scheduler = SubnetworkLR(optimizer, "a", lambda step: step % 2)
    optimizer.add_param_group(group(0.25, name="a"))
    assert advance(optimizer, scheduler, 2) == [[0.4, 0.25], [0.0, 0.0]]


class Halving:
    """A factor with state, which the scheduler saves."""

    def __init__(self, base):
        self.base = base

    def __call__(self, step):
        return self.base**step


def test_a_subnetworks_checkpoint_has_one_factor():
    optimizer = SGD([group(0.4, name="a"), group(0.2, name="a")], lr=1.0)
    scheduler = SubnetworkLR(optimizer, "a", Halving(0.5))
    advance(optimizer, scheduler)
    other = SGD([group(0.4, name="a")], lr=1.0)
    again = SubnetworkLR(other, "a", Halving(0.9))
    again.load_state_dict(scheduler.state_dict())
    other.add_param_group(group(0.2, name="a"))
    other.load_state_dict(optimizer.state_dict())
    assert advance(other, again, 2) == advance(optimizer, scheduler, 2) == [[0.1, 0.05], [0.05, 0.025]]


# -- keep probability, gradient weight, LOSSGRAD -----------------------------------------------------------------------


@tensors
@pytest.mark.parametrize("cls", [lrt.KeepProb, lrt.GradientWeight])
def test_an_added_group_has_the_value_in_force_and_follows(cls, tensor):
    start = torch.tensor(1.0, dtype=torch.float64) if tensor else 1.0
    optimizer = lrt.SGD(leaves((5,)), lr=0.1, **{cls.name: start})
    weights = cls(optimizer, lrt.linear(0.25, 0.75), 4)
    weights.step()
    optimizer.add_param_group(group(0.1))
    optimizer.add_param_group(group(0.1, **{cls.name: 1.0}))
    assert [float(g[cls.name]) for g in optimizer.param_groups] == [0.375, 0.375, 1.0]
    weights.step()
    assert [float(g[cls.name]) for g in optimizer.param_groups] == [0.5, 0.5, 0.5]
    del optimizer.param_groups[0]
    weights.load_state_dict({"last_step": 4, "total_steps": 4})
    weights.remove()
    optimizer.add_param_group(group(0.1))
    assert [float(g[cls.name]) for g in optimizer.param_groups] == [1.0, 1.0, 1.0]


def test_an_added_group_may_be_weighted_negatively_where_the_others_are():
    optimizer = lrt.SGD(leaves((5,)), lr=0.1)
    weights = lrt.GradientWeight(optimizer, lrt.constant(-1.0), 4, allow_negative=True)
    optimizer.add_param_group({"params": leaves((7,))})
    random_grads([p for g in optimizer.param_groups for p in g["params"]], 0)
    optimizer.step()
    weights.remove()
    optimizer.add_param_group({"params": leaves((3,))})
    assert all("allow_negative_grad_weight" not in g for g in optimizer.param_groups)


def test_a_group_added_to_another_optimizer_is_weighted_too():
    optimizer = SGD(leaves((5,)), lr=1.0)
    lrt.GradientWeight(optimizer, lrt.constant(0.5), 4)
    optimizer.add_param_group({"params": leaves((7,))})
    param = optimizer.param_groups[1]["params"][0]
    before = param.detach().clone()
    param.grad = torch.ones(7)
    optimizer.step()
    assert torch.equal(param, before - 0.5)


def test_lossgrad_tunes_added_groups_and_forgets_removed_ones():
    x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=0.0625), c=2.0, reject_nonfinite=True)
    tuned.step(lambda: (x * x).sum())
    tuned.add_param_group({"params": [y], "lr": 0.03125})
    tuned.step(lambda: (x * x).sum() + (y * y).sum())
    assert [float(g["lr"]) for g in tuned.param_groups] == [0.25, 0.0625]
    assert tuned.param_groups[1]["lr"].dtype == torch.float64 and not torch.equal(y, torch.ones(2))
    del tuned.param_groups[0]
    with torch.no_grad():
        x.fill_(7.0)
    losses = iter([0.0, float("nan")])
    tuned.step(lambda: (y * y).sum() + next(losses))
    assert torch.equal(x, torch.full((3,), 7.0))  # no longer its own to put back
    assert list(map(float, (g["lr"] for g in tuned.param_groups))) == [0.03125]
