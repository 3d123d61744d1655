"""Numbers of numpy, fractions and 0-dim arrays and tensors are numbers, and Python's own are what is kept of them."""

import copy
import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import assert_same_bits, leaves, train

import lrtricks_fused as lrt
from lrtricks_fused.schedules.subnetworks import SubnetworkLR
from lrtricks_fused.stability.probe import StabilityProbe
from lrtricks_fused.tuning.baselines import L4Adam, L4Mom, WNGrad

REALS = [np.float32, np.float64, np.longdouble, np.array, lambda x: np.array(x, np.float32), Fraction, torch.tensor]
COUNTS = [np.int64, np.uint8, np.array, lambda n: np.array(n, np.int32), torch.tensor]
reals = pytest.mark.parametrize("real", REALS, ids=range(len(REALS)))
counts = pytest.mark.parametrize("count", COUNTS, ids=range(len(COUNTS)))


def reloaded(state):
    """Through a file that holds nothing but tensors and Python's own."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_plain(values):
    """No type but Python's in there, at any depth; numpy's float64 is a float."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            assert_plain(value)
    else:
        assert type(values) in (int, float, bool, str, type(None)), repr(values)


# 0.5, 0.25 and 1.5 are the same number in every precision.
SHAPES = [
    (lrt.linear, dict(start=1.5, end=0.25)),
    (lrt.constant, dict(value=0.5)),
    (lrt.piecewise, dict(milestones=[0.25, 0.5], values=[1.5, 0.5, 0.25])),
    (lrt.late, dict(start=0.5, high=1.5, low=0.25)),
    (lrt.long_tail, dict(start=1.5, end=0.25, sharpness=0.5)),
    (lrt.trapezoid, dict(start=0.25, high=1.5, end=0.5, rise=0.25, fall=0.5)),
    (lrt.tanh_decay, dict(start=1.5, end=0.25, lower=-1.5, upper=0.5)),
    (lrt.polynomial_k_decay, dict(start=1.5, end=0.25, k=1.5, power=0.5)),
    (lrt.cosine_k_decay, dict(start=1.5, end=0.25, k=1.5)),
    (lrt.exponential_k_decay, dict(start=1.5, end=0.25, k=1.5)),
    (lrt.multi_k_decay, dict(start=1.5, end=0.25, ks=(0.5, 1.5), power=0.5)),
    (lrt.random_gradient, dict(probability=0.5)),
]
shapes = pytest.mark.parametrize(("shape", "kwargs"), SHAPES, ids=[shape.__name__ for shape, _ in SHAPES])


def converted(kwargs, real):
    return {k: [real(x) for x in v] if isinstance(v, (list, tuple)) else real(v) for k, v in kwargs.items()}


@reals
@shapes
def test_arguments_of_schedules(shape, kwargs, real):
    schedule = shape(**converted(kwargs, real))
    assert schedule == shape(**kwargs) and repr(schedule) == repr(shape(**kwargs))
    assert_plain(vars(schedule))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_arrays_are_lists(dtype):
    for array in (np.array([0.25, 0.5], dtype), torch.tensor([0.25, 0.5])):
        assert lrt.multi_k_decay(ks=array) == lrt.multi_k_decay(ks=[0.25, 0.5])
        assert lrt.piecewise(array, [1, 2, 3]) == lrt.piecewise([0.25, 0.5], np.arange(1, 4))
    assert_plain(vars(lrt.multi_k_decay(ks=np.array([0.25, 0.5], dtype))))


@reals
@shapes
def test_progress(shape, kwargs, real):
    if shape is lrt.random_gradient:
        return
    value = shape(**kwargs)(real(0.25))
    assert type(value) is float and value == shape(**kwargs)(0.25)


@counts
def test_counts(count):
    schedule = lrt.random_gradient(seed=count(7))
    assert type(schedule.seed) is int
    assert schedule.at_step(count(200)) == lrt.random_gradient(seed=7).at_step(200)
    optimizer = lrt.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    for made in (
        lrt.KeepProb(optimizer, lrt.constant(0.5), count(9)),
        lrt.GradientWeight(optimizer, lrt.constant(0.5), count(9)),
        lrt.PolynomialKDecayLR(optimizer, count(9), last_epoch=np.int64(-1)),
    ):
        assert type(made.total_steps) is int and made.total_steps == 9
        reloaded(made.state_dict())
    weights = lrt.KeepProb(optimizer, lrt.linear(0.0, 1.0), 8)
    weights.load_state_dict({"last_step": count(2), "total_steps": count(4)})
    assert_plain(weights.state_dict())
    assert weights.get_last_value() == 0.5
    weights.step(count(3))
    assert optimizer.param_groups[0]["keep_prob"] == 0.75 and type(weights.last_step) is int


@pytest.mark.parametrize("bad", [np.float64(2.0), np.array([2]), np.bool_(True), True, 2.0, np.array(2.0), "2", None])
def test_what_is_no_count(bad):
    optimizer = lrt.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    for cls, args in ((lrt.KeepProb, (lrt.constant(0.5),)), (lrt.CosineKDecayLR, ())):
        with pytest.raises(TypeError, match="Invalid total_steps="):
            cls(optimizer, *args, bad)
    with pytest.raises(TypeError, match="Invalid seed="):
        lrt.random_gradient(seed=bad)


@pytest.mark.parametrize("bad", [np.array([0.5, 0.5]), np.array([0.5]), np.complex64(1), 1j, "0.5", None])
def test_what_is_no_real_number(bad):
    with pytest.raises(TypeError, match="Invalid k="):
        lrt.cosine_k_decay(k=bad)
    with pytest.raises(TypeError, match="Invalid c="):
        lrt.LossGrad(lrt.SGD([torch.ones(2, requires_grad=True)], lr=0.5), c=bad)


@pytest.mark.parametrize("value", [np.float32(math.nan), np.float64(math.inf), np.array(-math.inf)])
def test_what_is_not_finite(value):
    with pytest.raises(ValueError, match=r"Invalid k=-?(nan|inf): must be finite"):
        lrt.cosine_k_decay(k=value)


@reals
@pytest.mark.parametrize(("cls", "kwargs"), [
    (lrt.PolynomialKDecayLR, dict(k=1.5, power=0.5)), (lrt.CosineKDecayLR, dict(k=1.5)),
    (lrt.ExponentialKDecayLR, dict(k=1.5)), (lrt.MultiKDecayLR, dict(ks=[0.5, 1.5], power=0.5)),
    (lrt.TrapezoidLR, dict(rise=0.25, fall=0.5)), (lrt.TanhLR, dict(lower=-1.5, upper=0.5)),
])  # fmt: skip
def test_learning_rate_schedulers(cls, kwargs, real):
    rows, states = [], []
    for kind in (float, real):
        lr = kind(0.5) if kind is not torch.tensor else 0.5  # a tensor lr is kept as one
        optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
        optimizer.param_groups[0]["lr"] = lr
        scheduler = cls(optimizer, 7, **converted(kwargs, kind), min_lr=kind(0.25))
        for _ in range(3):
            optimizer.step()
            scheduler.step()
        rows.append(optimizer.param_groups[0]["lr"])
        assert_plain([rows[-1], scheduler.state_dict()])
        states.append([reloaded(optimizer.state_dict()), reloaded(scheduler.state_dict())])
    assert rows[0] == rows[1] and states[0] == states[1]


def test_min_lr_as_an_array():
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in params], lr=0.5)
    scheduler = lrt.CosineKDecayLR(optimizer, 1, min_lr=np.array([0.25, 0.125], np.float32))
    assert_plain(scheduler.min_lrs)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125]


def test_numpys_numbers_that_come_later():
    optimizer = torch.optim.SGD([{"params": [torch.ones(2, requires_grad=True)], "name": "a"}], lr=0.5)
    decay = lrt.CosineKDecayLR(optimizer, 9)
    factor = SubnetworkLR(optimizer, "a", lambda step: np.exp(-np.float64(step)))
    for _ in range(3):
        optimizer.step()
        factor.step()
        optimizer.param_groups[0]["lr"] = np.float32(0.25)
        decay.step()
        assert_plain([optimizer.param_groups[0]["lr"], decay.state_dict(), factor.state_dict()])
    reloaded([optimizer.state_dict(), decay.state_dict(), factor.state_dict()])


@reals
def test_lossgrad(real):
    x = torch.ones(3, requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=0.0625), c=real(1.5))
    tuned.step(lambda: (x * x).sum())
    assert tuned.param_groups[0]["lr"] == 0.0625 * 1.5 and type(tuned.c) is float
    saved = reloaded(tuned.state_dict())
    tuned.load_state_dict({**saved, "c": real(1.5)})
    assert type(tuned.c) is float


@reals
@pytest.mark.parametrize(("cls", "kwargs"), [
    (WNGrad, dict(lr=0.5, b0=1.5, weight_decay=0.25)),
    (L4Mom, dict(alpha=0.25, gamma=0.5, init_factor=0.75, tau=64.0, beta=0.5, weight_decay=0.25)),
    (L4Adam, dict(alpha=0.25, gamma=0.5, init_factor=0.75, tau=64.0, betas=(0.5, 0.75), eps=0.5, weight_decay=0.25)),
])  # fmt: skip
def test_baselines(cls, kwargs, real):
    if real is torch.tensor:
        return  # kept as tensors, as torch.optim does
    ends = []
    for kind in (float, real):
        x, y = (torch.ones(3, requires_grad=True) for _ in range(2))
        own = {k: v for k, v in converted(kwargs, kind).items() if k in ("lr", "weight_decay", "beta", "betas")}
        optimizer = cls([{"params": [x]}, {"params": [y], **own}], **converted(kwargs, kind))

        def closure(x=x, y=y, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (x * x).sum() + (y * y * y * y).sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        for group in optimizer.param_groups:
            assert_plain([value for name, value in group.items() if name != "params"])
        ends.append([x.tolist(), y.tolist(), reloaded(optimizer.state_dict())["param_groups"]])
    assert ends[0] == ends[1]


@counts
def test_stability_probe(count):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout())
    args = (model, torch.ones(4, 3), torch.nn.functional.cross_entropy, torch.zeros(4, dtype=torch.long))
    probe = StabilityProbe(*args, training=True, seed=count(3), class_dim=count(1))
    report = probe.compare(probe.snapshot(), probe.snapshot())
    assert report.outputs["prediction_churn"] == 0 and report.outputs["logit_kl"] == 0
    twin = copy.deepcopy(StabilityProbe(*args, training=True, seed=3)).snapshot()
    assert torch.equal(twin.logits, probe.snapshot().logits)
    with pytest.raises(TypeError, match=r"Invalid seed=0\.5"):
        StabilityProbe(*args, seed=0.5)


def test_checkpoints_hold_numbers_of_python():
    numbers = dict(lr=np.float64(0.1), keep_prob=np.float32(0.5), weight_decay=Fraction(1, 10),
                   betas=(np.float64(0.9), 0.99), seed=np.int64(3), amsgrad=np.bool_(True))  # fmt: skip
    optimizer = lrt.Adam(leaves((3,)), **numbers)
    train(optimizer, range(2))
    saved = reloaded(optimizer.state_dict())
    group = saved["param_groups"][0]
    assert {name: group[name] for name in numbers} == numbers | {"weight_decay": 0.1}
    assert [type(group[name]) for name in numbers] == [float, float, float, tuple, int, bool]
    other = lrt.Adam(leaves((3,)))
    other.load_state_dict(saved)
    loaded, own = (next(iter(o.state.values())) for o in (other, optimizer))
    assert_same_bits([loaded["exp_avg"]], [own["exp_avg"]])
