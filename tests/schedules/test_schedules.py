"""Schedules as functions of the progress.

The closed forms stand here a second time, as the paper prints them, in numpy's float64.
"""

import copy
import itertools
import math
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrtricks_fused as lrt

# Both sides are float64; k-th powers and cosines differ by a few roundings.
CLOSE = dict(rel=1e-12, abs=1e-14)
L0, LE = 0.7, 0.03

# name of the shape, arguments, the paper's formula of r
PAPER = {
    "polynomial": (lrt.polynomial_k_decay, dict(k=1.7, power=0.9), lambda r: (L0 - LE) * (1 - r**1.7) ** 0.9 + LE),
    "cosine": (lrt.cosine_k_decay, dict(k=2.3), lambda r: 0.5 * (L0 - LE) * (1 + np.cos(np.pi * r**2.3)) + LE),
    "exponential": (
        lrt.exponential_k_decay,
        dict(k=0.6),
        lambda r: (L0 - LE) / (1 - np.exp(-1)) * np.exp(-(r**0.6)) + (LE - L0 * np.exp(-1)) / (1 - np.exp(-1)),
    ),
    "multi": (
        lrt.multi_k_decay,
        dict(ks=(0.5, 1.0, 4.0), power=1.3),
        lambda r: (L0 - LE) * (1 - (r**0.5 + r + r**4) / 3) ** 1.3 + LE,
    ),
    "linear": (lrt.linear, {}, lambda r: L0 + (LE - L0) * r),
    "long tail": (
        lrt.long_tail,
        dict(sharpness=7.0),
        lambda r: LE + (L0 - LE) * (1 / (1 + 7 * r) - 1 / 8) / (1 - 1 / 8),
    ),
    "tanh": (
        lrt.tanh_decay,
        dict(lower=-5.0, upper=2.0),
        lambda r: LE + 0.5 * (L0 - LE) * (1 - np.tanh(-5 * (1 - r) + 2 * r)),
    ),
}
shapes = pytest.mark.parametrize(("shape", "kwargs", "formula"), PAPER.values(), ids=PAPER)
OTHERS = [
    lrt.constant(0.3),
    lrt.piecewise((0.25, 0.5), (1.5, 0.1, 4.0)),
    lrt.late(start=0.4, high=1.2, low=0.5),
    lrt.trapezoid(start=0.2, high=1.4, end=0.1, rise=0.25, fall=0.75),
]
EVERY = [*(shape(L0, LE, **kwargs) for shape, kwargs, _ in PAPER.values()), *OTHERS]
every = pytest.mark.parametrize("schedule", EVERY, ids=repr)

unit = st.floats(0, 1)
ends = st.floats(-1e3, 1e3)
ks = st.floats(0.05, 20)


@shapes
def test_is_the_papers_formula(shape, kwargs, formula):
    schedule = shape(L0, LE, **kwargs)
    for r in np.linspace(0, 1, 41):
        assert schedule(r) == pytest.approx(formula(r), **CLOSE)
    assert type(schedule(0)) is float


@given(start=ends, end=ends, k=ks, power=st.floats(0.1, 5))
@settings(deadline=None)
def test_ends_are_exact(start, end, k, power):
    for schedule in (
        lrt.polynomial_k_decay(start, end, k=k, power=power),
        lrt.cosine_k_decay(start, end, k=k),
        lrt.exponential_k_decay(start, end, k=k),
        lrt.multi_k_decay(start, end, ks=(k, 1.1, 3 * k), power=power),
        lrt.linear(start, end),
        lrt.long_tail(start, end, sharpness=k),
    ):
        assert (schedule(0), schedule(1)) == (start, end)


@given(left=unit, right=unit, k=ks, more=st.floats(0, 5), power=st.floats(0.1, 5))
@settings(deadline=None)
def test_falls_with_the_progress_and_rises_with_k(left, right, k, more, power):
    left, right = sorted((left, right))
    rounding = 1e-13  # of two values around 1 whose powers are rounded apart
    for make in (
        lambda k: lrt.polynomial_k_decay(2.0, 0.5, k=k, power=power),
        lambda k: lrt.cosine_k_decay(2.0, 0.5, k=k),
        lambda k: lrt.exponential_k_decay(2.0, 0.5, k=k),
        lambda k: lrt.multi_k_decay(2.0, 0.5, ks=[k, 2 * k], power=power),
    ):
        assert 2.0 >= make(k)(left) >= make(k)(right) - rounding
        assert make(k)(right) >= 0.5
        assert make(k + more)(left) >= make(k)(left) - rounding


def test_order_in_k_is_strict_inside():
    for shape in (lrt.polynomial_k_decay, lrt.cosine_k_decay, lrt.exponential_k_decay):
        values = [shape(1.0, 0.1, k=k)(0.5) for k in (0.5, 1, 1.5, 2, 3)]
        assert all(left + 0.01 < right for left, right in itertools.pairwise(values))


@every
def test_keeps_its_value_outside_and_refuses_nan(schedule):
    assert schedule(-0.5) == schedule(0.0)
    assert schedule(1.0000001) == schedule(math.inf) == schedule(1.0)
    with pytest.raises(ValueError, match="progress=nan"):
        schedule(math.nan)


@every
def test_bounds_are_the_extreme_values(schedule):
    values = [schedule(r) for r in np.linspace(0, 1, 1001)]
    assert schedule.bounds() == (min(values), max(values))


@pytest.mark.parametrize("schedule", [*EVERY, lrt.random_gradient(seed=5, probability=0.25)], ids=repr)
def test_can_be_pickled_compared_and_read(schedule):
    twin = pickle.loads(pickle.dumps(schedule))
    assert twin == schedule and hash(twin) == hash(schedule)
    assert eval(repr(schedule), dict(vars(lrt))) == schedule
    assert copy.deepcopy(schedule) == schedule


def test_linear_is_the_loss_decay_papers():
    for start in (2.0, 3.0):
        weights = [lrt.linear(start=start, end=0)(e / 100) for e in range(101)]
        assert weights == pytest.approx([start * (1 - e / 100) for e in range(101)], **CLOSE)
        assert weights[-1] == 0
    assert lrt.linear() == lrt.linear(start=2, end=0)
    assert lrt.linear()(0.9) == pytest.approx(0.2, **CLOSE)


def test_late_is_the_authors_code():
    schedule = lrt.late()
    for e in range(101):
        assert schedule(e / 100) == pytest.approx(1 if e < 70 else 2 / 3 - e / 150, **CLOSE)
    other = lrt.late(start=0.4, high=1.2, low=0.5)
    assert [other(r) for r in (0, 0.39, 0.4, 0.7, 1)] == pytest.approx([1.2, 1.2, 0.5, 0.25, 0], **CLOSE)
    assert lrt.late(start=0.0, high=9.0, low=0.5).bounds() == (0.0, 0.5)


def test_piecewise():
    schedule = lrt.piecewise([0.25, 0.5], [1.5, 0.1, 4.0])
    assert [schedule(r) for r in (0, 0.2499, 0.25, 0.4999, 0.5, 1)] == [1.5, 1.5, 0.1, 0.1, 4.0, 4.0]
    assert lrt.piecewise([], [0.5])(0.3) == 0.5


def test_trapezoid():
    schedule = lrt.trapezoid(start=0.2, high=1.4, end=0.1, rise=0.25, fall=0.75)
    points = {0: 0.2, 0.125: 0.8, 0.25: 1.4, 0.5: 1.4, 0.75: 1.4, 0.875: 0.75, 1: 0.1}
    assert [schedule(r) for r in points] == pytest.approx(list(points.values()), **CLOSE)
    assert [lrt.trapezoid(rise=0, fall=1)(r) for r in (0, 0.5, 1)] == [1, 1, 1]
    assert [lrt.trapezoid(rise=0.5, fall=0.5)(r) for r in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert lrt.trapezoid(start=-1, high=1, end=-2, rise=0, fall=1).bounds() == (1, 1)


def test_long_tail_starts_fast_and_is_half_way_where_it_says():
    for sharpness in (0.0, 4.0, 30.0):
        assert lrt.long_tail(2.0, 0.0, sharpness)(1 / (2 + sharpness)) == pytest.approx(1.0, **CLOSE)
    assert lrt.long_tail(sharpness=0) != lrt.long_tail()
    assert lrt.long_tail() == lrt.long_tail(start=3.0, end=0.0, sharpness=4.0)


def test_power_0_is_constant():
    assert [lrt.polynomial_k_decay(0.7, 0.1, power=0)(r) for r in (0, 0.5, 1, 2)] == [0.7] * 4


def test_a_large_power_of_large_counts_does_not_overflow():
    assert lrt.polynomial_k_decay(1.0, 0.0, k=60)(299_999 / 300_000) == pytest.approx(60 / 300_000, rel=1e-3)
    assert lrt.polynomial_k_decay(1.0, 0.0, k=1e6)(0.5) == 1.0


BAD = [
    (lrt.linear, dict(start=math.nan), ValueError, "start=nan"),
    (lrt.linear, dict(end="0"), TypeError, "end='0'"),
    (lrt.constant, dict(value=math.inf), ValueError, "value=inf"),
    (lrt.piecewise, dict(milestones=[0.5, 0.5], values=[1, 2, 3]), ValueError, "milestones=(0.5, 0.5)"),
    (lrt.piecewise, dict(milestones=[0.0], values=[1, 2]), ValueError, "milestones=(0.0,)"),
    (lrt.piecewise, dict(milestones=[1.0], values=[1, 2]), ValueError, "milestones=(1.0,)"),
    (lrt.piecewise, dict(milestones=[0.5], values=[1]), ValueError, "values=(1,)"),
    (lrt.piecewise, dict(milestones=[0.5], values=[1, math.nan]), ValueError, "values[1]=nan"),
    (lrt.late, dict(start=1.0), ValueError, "start=1.0"),
    (lrt.late, dict(low=math.inf), ValueError, "low=inf"),
    (lrt.long_tail, dict(sharpness=-0.5), ValueError, "sharpness=-0.5"),
    (lrt.trapezoid, dict(rise=-0.1), ValueError, "rise=-0.1"),
    (lrt.trapezoid, dict(rise=0.6, fall=0.5), ValueError, "fall=0.5"),
    (lrt.trapezoid, dict(fall=1.5), ValueError, "fall=1.5"),
    (lrt.trapezoid, dict(high=None), TypeError, "high=None"),
    (lrt.tanh_decay, dict(lower=3, upper=3), ValueError, "upper=3"),
    *((shape, dict(k=k), ValueError, f"Invalid k={k}: must be") for k in (0, -1, math.nan, math.inf)
      for shape in (lrt.polynomial_k_decay, lrt.cosine_k_decay, lrt.exponential_k_decay)),
    (lrt.polynomial_k_decay, dict(k=-1), ValueError, "Invalid k=-1: must be > 0"),
    (lrt.polynomial_k_decay, dict(power=-0.5), ValueError, "power=-0.5"),
    (lrt.multi_k_decay, dict(ks=[]), ValueError, "ks=[]"),
    (lrt.multi_k_decay, dict(ks=1.5), ValueError, "ks=1.5"),
    (lrt.multi_k_decay, dict(ks=[1, 0]), ValueError, "ks[1]=0"),
    (lrt.multi_k_decay, dict(ks=[1], power=-1), ValueError, "power=-1"),
    (lrt.random_gradient, dict(seed=-1), ValueError, "seed=-1"),
    (lrt.random_gradient, dict(seed=2**64), ValueError, f"seed={2**64}"),
    (lrt.random_gradient, dict(seed=0.5), TypeError, "seed=0.5"),
    (lrt.random_gradient, dict(probability=1.5), ValueError, "probability=1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "kwargs", "error", "text"), BAD)
def test_bad_arguments(shape, kwargs, error, text):
    with pytest.raises(error, match=re.escape(text)):
        shape(**kwargs)
