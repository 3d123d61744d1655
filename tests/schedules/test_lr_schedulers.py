"""The learning rate schedulers: the papers' formulas in every group, torch's machinery around them, exact resume.

The closed forms stand in ``support/schedulers.py``.
"""

import copy
import io
import math
import re

import numpy as np
import pytest
import torch
from schedulers import CLOSE, SCHEDULERS, poly
from torch.optim import lr_scheduler as torchs

import lrtricks_fused as lrt

schedulers = pytest.mark.parametrize(("cls", "kwargs", "formula"), SCHEDULERS.values(), ids=SCHEDULERS)
BASES = (0.4, 0.05)


def make_optimizer(lrs=BASES, cls=torch.optim.SGD):
    groups = [{"params": [torch.ones(2, requires_grad=True)], "lr": lr} for lr in lrs]
    return cls(groups, lr=1.0)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def trajectory(optimizer, scheduler, steps):
    rows = [lrs_of(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rows.append(lrs_of(optimizer))
    return rows


@schedulers
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, lrt.Adam], ids=["torch", "ours"])
def test_lr_is_the_papers_in_every_group_and_past_the_end(cls, kwargs, formula, optimizer_class):
    lows = [0.01, 0.002]
    optimizer = make_optimizer(cls=optimizer_class)
    rows = trajectory(optimizer, cls(optimizer, 7, **kwargs, min_lr=lows), 10)
    for t, row in enumerate(rows):
        assert row == pytest.approx([formula(t, base, low) for base, low in zip(BASES, lows, strict=True)], **CLOSE)
    assert rows[7] == rows[8] == rows[10]
    if cls is not lrt.TanhLR:
        assert rows[7] == lows
    if cls not in (lrt.TanhLR, lrt.TrapezoidLR):
        assert rows[0] == list(BASES)


@schedulers
def test_one_min_lr_for_all_groups_above_some(cls, kwargs, formula):
    optimizer = make_optimizer()
    rows = trajectory(optimizer, cls(optimizer, 7, **kwargs, min_lr=0.1), 9)
    for t, row in enumerate(rows):
        assert row == pytest.approx([formula(t, base, 0.1) for base in BASES], **CLOSE)


@schedulers
def test_tensor_lr_is_updated_in_place(cls, kwargs, formula):
    bases = [torch.tensor(0.4), torch.tensor([0.05], dtype=torch.float64)]
    optimizer = make_optimizer(copy.deepcopy(bases))
    held = [group["lr"] for group in optimizer.param_groups]
    scheduler = cls(optimizer, 7, **kwargs, min_lr=0.01)
    for t in range(10):
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, held, strict=True))
        # Rounded once, to the dtype of lr: no rounding accumulates.
        assert float(held[0]) == pytest.approx(formula(t, float(bases[0]), 0.01), rel=2**-24)
        assert float(held[1]) == pytest.approx(formula(t, 0.05, 0.01), **CLOSE)
        assert [type(lr) for lr in scheduler.get_last_lr()] == [torch.Tensor, torch.Tensor]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("tensor", [False, True])
@schedulers
def test_resumes_bit_for_bit(cls, kwargs, formula, tensor):
    lrs = [torch.tensor(lr) for lr in BASES] if tensor else BASES
    optimizer = make_optimizer(copy.deepcopy(lrs))
    scheduler = cls(optimizer, 7, **kwargs, min_lr=[0.01, 0.002])
    trajectory(optimizer, scheduler, 3)
    optimizer.param_groups[1]["lr"] *= 0.5  # somebody else's
    trajectory(optimizer, scheduler, 1)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = make_optimizer(copy.deepcopy(lrs))
    # Built with other arguments: the state holds all of them.
    other = cls(fresh, 99, **({"ks": [9.0]} if "ks" in kwargs else {}), min_lr=0.3)
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    kept = copy.deepcopy(saved)
    assert trajectory(fresh, other, 5) == trajectory(optimizer, scheduler, 5)
    assert saved == kept  # stepping does not write into the loaded dict


@schedulers
def test_resumes_by_last_epoch(cls, kwargs, formula):
    optimizer = make_optimizer()
    trajectory(optimizer, cls(optimizer, 7, **kwargs, min_lr=0.01), 3)
    fresh = make_optimizer()
    fresh.load_state_dict(optimizer.state_dict())
    rows = trajectory(fresh, cls(fresh, 7, **kwargs, min_lr=0.01, last_epoch=2), 6)
    for t, row in enumerate(rows, start=3):
        assert row == pytest.approx([formula(t, base, 0.01) for base in BASES], **CLOSE)
    with pytest.raises(KeyError, match="initial_lr"):
        cls(make_optimizer(), 7, **kwargs, last_epoch=2)


@schedulers
def test_after_a_warmup_in_sequential(cls, kwargs, formula):
    optimizer = make_optimizer()
    warmup = torchs.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    scheduler = torchs.SequentialLR(optimizer, [warmup, cls(optimizer, 7, **kwargs, min_lr=0.01)], milestones=[3])
    rows = trajectory(optimizer, scheduler, 12)
    factors = [0.25, 0.5, 0.75]
    for t, row in enumerate(rows):
        wanted = [factors[t] * base if t < 3 else formula(t - 3, base, 0.01) for base in BASES]
        assert row == pytest.approx(wanted, **CLOSE)


@schedulers
def test_first_in_sequential(cls, kwargs, formula):
    optimizer = make_optimizer()
    first = cls(optimizer, 7, **kwargs, min_lr=0.01)
    last = torchs.ConstantLR(optimizer, factor=0.5, total_iters=100)
    rows = trajectory(optimizer, torchs.SequentialLR(optimizer, [first, last], milestones=[4]), 6)
    for t, row in enumerate(rows):
        assert row == pytest.approx([formula(t, base, 0.01) if t < 4 else base / 2 for base in BASES], **CLOSE)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("ours_first", [False, True])
@schedulers
def test_chained_with_others(cls, kwargs, formula, ours_first, tensor):
    # Without min_lr everything multiplies, whatever the order: ConstantLR's factor for 3 steps, then ExponentialLR's.
    lrs = [torch.tensor(lr, dtype=torch.float64) for lr in BASES] if tensor else BASES
    optimizer = make_optimizer(lrs)
    makers = [
        lambda: torchs.ConstantLR(optimizer, factor=0.25, total_iters=3),
        lambda: torchs.ExponentialLR(optimizer, gamma=0.9),
    ]
    makers.insert(0 if ours_first else 2, lambda: cls(optimizer, 7, **kwargs))
    chain = torchs.ChainedScheduler([make() for make in makers], optimizer=optimizer)
    rows = trajectory(optimizer, chain, 9)
    lost = 1.0
    if cls is lrt.TrapezoidLR:  # which is 0 at first, where the others multiply in vain
        lost = 0.25 if ours_first else 0.9
    for t, row in enumerate(rows):
        factor = (0.25 if t < 3 else 1.0) * 0.9**t / lost
        assert row == pytest.approx([formula(t, base, 0) * factor for base in BASES], **CLOSE)


@schedulers
def test_a_changed_lr_is_taken_over(cls, kwargs, formula):
    optimizer = make_optimizer()
    scheduler = cls(optimizer, 7, **kwargs, min_lr=0.01)
    trajectory(optimizer, scheduler, 2)
    optimizer.param_groups[0]["lr"] = 0.3
    rows = trajectory(optimizer, scheduler, 7)
    share = [(formula(t, 1.0, 0.0)) for t in range(2, 10)]
    for row, now in zip(rows, share, strict=True):
        assert row[0] == pytest.approx(0.01 + 0.29 * now / share[0], **CLOSE)
    assert [row[1] for row in rows] == pytest.approx([formula(t, 0.05, 0.01) for t in range(2, 10)], **CLOSE)


@pytest.mark.parametrize(
    ("make", "twin", "low"),
    [
        (lambda o: lrt.PolynomialKDecayLR(o, 9, k=1, power=2.5), lambda o: torchs.PolynomialLR(o, 9, power=2.5), 0),
        (
            lambda o: lrt.PolynomialKDecayLR(o, 9, k=1.0, min_lr=[0.04, 0.005]),
            lambda o: torchs.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=9),
            0,
        ),
        (
            lambda o: lrt.CosineKDecayLR(o, 9, k=1, min_lr=0.01),
            lambda o: torchs.CosineAnnealingLR(o, 9, eta_min=0.01),
            0.01,
        ),
    ],
    ids=["polynomial", "linear", "cosine"],
)
def test_k_1_is_torchs(make, twin, low):
    ours, theirs = make_optimizer(), make_optimizer()
    rows = [trajectory(o, scheduler(o), 9) for o, scheduler in ((ours, make), (theirs, twin))]
    for t, (row, wanted) in enumerate(zip(*rows, strict=True)):
        assert row == pytest.approx(wanted, rel=1e-12, abs=1e-15), t


def test_the_closed_form_does_not_drift():
    optimizer = make_optimizer([0.1])
    rows = trajectory(optimizer, lrt.PolynomialKDecayLR(optimizer, 5000, k=1.5, power=2.0), 5000)
    exact = [0.1 * (1 - (t / 5000) ** 1.5) ** 2 for t in range(5001)]
    np.testing.assert_array_max_ulp(np.array(rows)[:, 0], np.array(exact), maxulp=2)


@pytest.mark.parametrize("tensor", [False, True])
def test_at_the_end_a_changed_lr_is_not_taken_over(tensor):
    optimizer = make_optimizer([torch.tensor(0.5) if tensor else 0.5])
    scheduler = lrt.CosineKDecayLR(optimizer, 2, min_lr=0.125)
    trajectory(optimizer, scheduler, 2)
    optimizer.param_groups[0]["lr"] *= 3
    assert trajectory(optimizer, scheduler, 2) == [[0.375], [0.125], [0.125]]


def test_a_tensor_lr_replaced_by_a_float_stays_a_float():
    optimizer = make_optimizer([torch.tensor(0.5)])
    scheduler = lrt.CosineKDecayLR(optimizer, 7)
    for value in (0.5, 0.25):  # the same number, and another one
        optimizer.param_groups[0]["lr"] = value
        optimizer.step()
        scheduler.step()
        assert type(optimizer.param_groups[0]["lr"]) is float


def test_one_step_in_all():
    optimizer = make_optimizer()
    rows = trajectory(optimizer, lrt.PolynomialKDecayLR(optimizer, 1, min_lr=0.01), 2)
    assert rows == [list(BASES), [0.01, 0.01], [0.01, 0.01]]


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_step_with_an_epoch_jumps():
    optimizer = make_optimizer()
    scheduler = lrt.PolynomialKDecayLR(optimizer, 7, k=1.7, power=0.9, min_lr=0.01)
    optimizer.step()
    for t in (4, 2):
        scheduler.step(t)
        assert lrs_of(optimizer) == pytest.approx([poly(t, base, 0.01) for base in BASES], **CLOSE)
    scheduler.step()
    assert lrs_of(optimizer) == pytest.approx([poly(3, base, 0.01) for base in BASES], **CLOSE)


def test_get_lr_outside_a_step_warns():
    optimizer = make_optimizer()
    with pytest.warns(UserWarning, match="get_last_lr"):
        lrt.CosineKDecayLR(optimizer, 7).get_lr()


BAD_LR = [
    *((dict(total_steps=value), ValueError, f"total_steps={value}") for value in (0, -3)),
    *((dict(total_steps=value), TypeError, f"total_steps={value!r}") for value in (2.5, "7", True)),
    (dict(min_lr=-0.1), ValueError, "min_lr=-0.1"),
    (dict(min_lr=[0.1, math.nan]), ValueError, "min_lr=nan"),
    (dict(min_lr=[0.1]), ValueError, "min_lr=[0.1]"),
    (dict(min_lr="0"), TypeError, "min_lr='0'"),
]


@schedulers
def test_bad_arguments_of_schedulers(cls, kwargs, formula):
    wrong = {"k": -1.5, "power": -1, "ks": [], "rise": 2, "fall": 2, "lower": math.nan, "upper": -9}
    calls = [*BAD_LR, *((({name: wrong[name]}), ValueError, f"{name}={wrong[name]}") for name in kwargs)]
    for changed, error, text in calls:
        optimizer = make_optimizer()
        with pytest.raises(error, match=re.escape(text)):
            cls(optimizer, **{"total_steps": 7, **kwargs, **changed})
        assert "initial_lr" not in optimizer.param_groups[0]  # untouched
    with pytest.raises(TypeError, match="list"):
        cls([], 7, **kwargs)
