"""LOSSGRAD against closed forms on quadratics and an independent loop in float64."""

import copy
import itertools
import math

import pytest
import torch
from helpers import assert_same_bits, everything
from inventory import RICH
from torch.utils._python_dispatch import TorchDispatchMode

import lrtricks_fused as lrt
from lrtricks_fused.tuning import lossgrad

CURVATURES = torch.tensor([0.5, 1.0, 3.0, 7.0], dtype=torch.float64)


def quadratic(lr, c=1.05, start=(1.0, -2.0, 0.5, 1.5), curvatures=CURVATURES, **options):
    """LossGrad over SGD on f = sum(curvature x^2) / 2."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=lr, **options), c=c)
    return x, tuned, lambda: (curvatures * x * x).sum() / 2


def exact_step(x, curvatures=CURVATURES):
    """The step of an exact line search along the gradient of the quadratic."""
    return ((curvatures * x) ** 2).sum() / (curvatures * (curvatures * x) ** 2).sum()


@pytest.mark.parametrize("lr", [1e-3, 0.05, 0.4, 3.0])
def test_ratio_on_a_quadratic_is_h_over_twice_the_exact_step(lr):
    x, tuned, f = quadratic(lr)
    t0 = exact_step(x.detach())
    tuned.step(f)
    torch.testing.assert_close(tuned.ratio, lr / (2 * t0), rtol=1e-9, atol=0)  # loss of digits: 1e-16 / (h |g|^2 / f)
    assert tuned.param_groups[0]["lr"] == lr * 1.05 if lr <= t0 else tuned.param_groups[0]["lr"] == lr * (1 / 1.05)


def test_exact_steps_meet_the_rate_bound_in_two_dimensions():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        curvatures = torch.rand(2, dtype=torch.float64, generator=generator) * 5 + 0.1
        start = torch.randn(2, dtype=torch.float64, generator=generator)
        x, tuned, f = quadratic(1.0, start=start.tolist(), curvatures=curvatures)
        for n in range(1, 4):
            for _ in range(2):
                tuned.param_groups[0]["lr"] = exact_step(x.detach(), curvatures)
                tuned.step(f)
                torch.testing.assert_close(tuned.ratio, torch.tensor(0.5, dtype=torch.float64), rtol=1e-6, atol=0)
            bound = ((curvatures[0] - curvatures[1]) / curvatures.sum()) ** (2 * n) * start.norm()
            assert x.detach().norm() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("c", [1.05, 1.2])
@pytest.mark.parametrize("case", RICH, ids=lambda case: case.name)
def test_every_optimizer_against_a_loop_of_its_own(case, c):
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(n, dtype=torch.float64, generator=generator).requires_grad_() for n in (600, 5)]
    centres = [torch.randn(n, dtype=torch.float64, generator=generator) for n in (600, 5)]

    def loss(values):
        return sum(((v - centre) ** 4).sum() for v, centre in zip(values, centres, strict=True))

    h = [0.01, 0.003]
    groups = [{"params": params[:1], "lr": h[0]}, {"params": params[1:], "lr": h[1], "grad_weight": 0.5}]
    tuned = lrt.LossGrad(case.make(groups, keep_prob=0.5, backend="native"), c=c)
    sign = -1.0 if case.kwargs.get("maximize") else 1.0
    for _ in range(12):
        before = [param.detach().clone() for param in params]
        grads = [4 * (b - centre) ** 3 for b, centre in zip(before, centres, strict=True)]
        returned = tuned.step(lambda: sign * loss(params) if sign > 0 else loss(params))
        slope = sum((g * (b - p.detach())).sum() for g, b, p in zip(grads, before, params, strict=True))
        rise = loss([p.detach() for p in params]) - loss(before)
        torch.testing.assert_close(returned, loss(before), rtol=0, atol=0)
        # Some climb until they overflow.
        torch.testing.assert_close(tuned.ratio, (rise + slope) / slope, rtol=1e-9, atol=1e-9, equal_nan=True)
        factor = c if 2 * rise + slope <= 0 else 1 / c
        h = [value * factor for value in h]
        assert [group["lr"].item() for group in tuned.param_groups] == h


def test_groups_and_frozen_parameters():
    x, frozen = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = lrt.SGD([{"params": [x], "lr": 0.1}, {"params": [frozen], "lr": 0.5}, {"params": [], "lr": 1.0}])
    tuned = lrt.LossGrad(optimizer, c=2.0)
    tuned.step(lambda: (x * x).sum())
    assert [float(group["lr"]) for group in tuned.param_groups] == [0.2, 1.0, 1.0]
    assert torch.equal(frozen, torch.ones(3)) and tuned.optimizer is optimizer
    assert tuned.param_groups is optimizer.param_groups


def test_a_tensor_lr_stays_the_same_object():
    x = torch.ones(3, requires_grad=True)
    lr = torch.tensor(0.125)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=lr), c=2.0)
    tuned.step(lambda: (x * x).sum())
    assert tuned.param_groups[0]["lr"] is lr and lr == 0.25


@pytest.mark.parametrize(("dtype", "grows"), [(torch.float32, True), (torch.float64, False)])
def test_a_decrease_below_the_resolution_of_the_loss(dtype, grows):
    # The trial is one rounding of float32 above the loss; the predicted decrease is a thousandth of that.
    x = torch.zeros(1, dtype=dtype, requires_grad=True)  # near 0 so small a step is not rounded away
    losses = iter([1.0, 1.0 + 2**-23])
    tuned = lrt.LossGrad(lrt.SGD([x], lr=1e-10), c=2.0)
    tuned.step(lambda: x.sum() - x.detach().sum() + next(losses))
    assert tuned.param_groups[0]["lr"] == (2e-10 if grows else 0.5e-10)


def test_uphill_steps_shrink():
    _x, tuned, f = quadratic(0.1, maximize=True)
    tuned.step(f)
    assert tuned.param_groups[0]["lr"] == 0.1 * (1 / 1.05)


def test_zero_derivative_leaves_h():
    _, tuned, f = quadratic(0.1, start=(0.0, 0.0, 0.0, 0.0))
    tuned.step(f)
    assert tuned.param_groups[0]["lr"] == 0.1
    _x, tuned, f = quadratic(0.1, keep_prob=0.0)
    tuned.step(f)
    assert tuned.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize("start", [0.0, 1.0])  # zero: the derivative is, too
def test_a_trial_loss_that_is_not_finite_never_raises_h(bad, reject, start):
    x = torch.full((700,), start, requires_grad=True)
    losses = iter([0.0, bad, 0.0])
    tuned = lrt.LossGrad(lrt.SGD([x], lr=0.5), c=2.0, reject_nonfinite=reject)
    before = x.detach().clone()
    tuned.step(lambda: (x * x).sum() + next(losses))
    assert tuned.param_groups[0]["lr"] == 0.25
    assert torch.equal(x, before) == (reject or start == 0)


def test_rejection_puts_back_bits_and_only_when_it_must():
    x = torch.tensor([1e30, -0.0, 3.0], requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=1e20), c=1.5, reject_nonfinite=True)
    before = x.detach().clone()
    tuned.step(lambda: (x * x).sum() * 1e-30)
    assert_same_bits([x.detach()], [before])
    y, tuned, f = quadratic(0.1)
    tuned.reject_nonfinite = True
    tuned.step(f)
    assert not torch.equal(y, torch.tensor((1.0, -2.0, 0.5, 1.5), dtype=torch.float64))


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )


@pytest.mark.parametrize("given", [True, False])
def test_batch_norm_statistics(given):
    model, inputs = network(), torch.randn(16, 6)
    tuned = lrt.LossGrad(lrt.Adam(model.parameters(), lr=0.01), model=model if given else None)
    once = copy.deepcopy(model)
    once(inputs)
    tuned.step(lambda: model(inputs).square().mean())
    assert model[1].num_batches_tracked == (1 if given else 2)
    assert torch.equal(model[1].running_mean, once[1].running_mean) == given


def test_replayed_random_numbers():
    model, inputs = network(), torch.randn(16, 6)
    same, trials = {}, {}
    for replay in (True, False):
        losses = []

        def closure(losses=losses):
            losses.append(model(inputs).square().mean())
            return losses[-1]

        torch.manual_seed(5)
        tuned = lrt.LossGrad(lrt.SGD(model.parameters(), lr=0.0), model=model, replay_rng=replay)
        tuned.step(closure)
        same[replay] = torch.equal(*losses)
        trials[replay] = torch.rand(3)
    torch.manual_seed(5)
    model(inputs)
    assert same == {True: True, False: False}  # lr 0: only dropout can tell the two losses apart
    assert torch.equal(torch.rand(3), trials[True])  # as after one evaluation


def test_resume_is_exact():
    x, tuned, f = quadratic(0.02, momentum=0.9, keep_prob=0.8)
    for _ in range(5):
        tuned.step(f)
    saved = copy.deepcopy(tuned.state_dict())
    _y, other, g = quadratic(1.0, c=3.0, start=x.tolist(), momentum=0.9, keep_prob=0.8)
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    assert other.c == 1.05
    assert_same_bits([other.ratio], [tuned.ratio])
    for _ in range(5):
        tuned.step(f)
        other.step(g)
    assert_same_bits(everything(tuned.optimizer), everything(other.optimizer))
    assert other.param_groups[0]["lr"] == tuned.param_groups[0]["lr"]
    assert saved["c"] == kept["c"]
    assert_same_bits([saved["ratio"]], [kept["ratio"]])


def test_replicas_agree_through_all_reduce():
    _x, tuned, f = quadratic(0.1)
    seen = []
    tuned.all_reduce = lambda losses: seen.append(losses.clone()) or losses.copy_(torch.tensor([1.0, 5.0]))
    tuned.step(f)
    assert seen[0].shape == (2,) and tuned.param_groups[0]["lr"] < 0.1  # the losses put there rise


class NoRead(TorchDispatchMode):
    """Fails where a tensor's value is read by the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back(monkeypatch):
    _x, tuned, f = quadratic(0.1)
    tuned.reject_nonfinite = True
    step = tuned.optimizer.step
    modes = [NoRead()]

    def with_reads():  # the optimizer of a CPU reads its scalars; on a GPU the kernels do
        modes[0].__exit__(None, None, None)
        step()
        modes[0].__enter__()

    monkeypatch.setattr(tuned.optimizer, "step", with_reads)
    with modes[0]:
        tuned.step(f)


def test_bad_input():
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match="Invalid optimizer of type SGD"):
        lrt.LossGrad(torch.optim.SGD([x], lr=0.1))
    for c in (1.0, 0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="Invalid c="):
            lrt.LossGrad(lrt.SGD([x], lr=0.1), c=c)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=0.1))

    def with_backward():
        loss = (x * x).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="must not call backward"):
        tuned.step(with_backward)
    assert torch.equal(x, torch.ones(3)) and tuned.optimizer._slopes is None


def test_the_optimizer_alone_sums_no_slope_afterwards():
    _x, tuned, f = quadratic(0.1)
    tuned.step(f)
    f().backward()
    slope = tuned._slopes[torch.device("cpu")].clone()
    tuned.optimizer.step()
    assert torch.equal(slope, tuned._slopes[torch.device("cpu")])


SPECIAL = [0.0, 1.0, -1.0, 1 + 2**-22, 1 - 2**-52, 1e-9, -1e-9, 1e300, -1e300, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_decision_equals_torchs(dtype):
    for values in itertools.product(SPECIAL, repeat=3):
        loss, trial = (torch.tensor(value, dtype=dtype) for value in values[:2])
        slope = torch.tensor(values[2], dtype=torch.float64)
        lrs, twins = ([torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.3)] for _ in range(2))
        ratio = lossgrad.adapt(loss, trial, slope, lrs, 1.05, 1e-6)
        expected = lossgrad._adapt(loss.double(), trial.double(), slope, twins, 1.05, 1e-6)
        assert_same_bits([ratio, *lrs], [expected, *twins])


@pytest.mark.parametrize("broken", range(5))
def test_native_decision_checks_before_it_writes(broken):
    scalars = [torch.tensor(float(i + 1), dtype=torch.float64) for i in range(5)]
    scalars[broken] = torch.ones(2) if broken % 2 else torch.tensor(1)
    *given, lr = scalars
    good = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match=r"Invalid (loss|trial|slope|ratio|lrs)"):
        torch.ops.lrtricks_fused.lossgrad_(*given, [good, lr], 1.05, 1e-6)
    assert good == 1 and (broken == 3 or scalars[3] == 4)


def test_opcheck_of_the_native_decision():
    scalars = [torch.tensor(float(i + 1), dtype=torch.float64) for i in range(4)]
    torch.library.opcheck(
        torch.ops.lrtricks_fused.lossgrad_.default, [*scalars, [torch.tensor(0.1), torch.tensor(0.2)], 1.05, 1e-6]
    )


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("kind", ["split", "mirror"])
def test_rejection_puts_back_what_is_stored_beside_a_parameter(kind, steps):
    torch.manual_seed(0)
    param, target = (torch.randn(1000).to(torch.bfloat16 if kind == "split" else torch.float32) for _ in range(2))
    param.requires_grad_()
    mirror = torch.empty(1000, dtype=torch.bfloat16)
    optimizer = lrt.SGD([param], lr=0.01, master="split" if kind == "split" else None)
    if kind == "mirror":
        optimizer.mirror(param, mirror)
    factors = iter([*[1.0, 1.0] * steps, 1.0, float("nan")])
    tuned = lrt.LossGrad(optimizer, reject_nonfinite=True)
    for _ in range(steps):
        tuned.step(lambda: (param * target).square().mean() * 100 * next(factors))
    before, mirrored = optimizer.master(param), mirror.clone()
    tuned.step(lambda: (param * target).square().mean() * 100 * next(factors))
    assert_same_bits([optimizer.master(param)], [before])
    if kind == "mirror":
        assert_same_bits([mirror], [mirrored])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_a_rate_that_could_not_grow_is_refused_first(dtype):
    x = torch.ones(3, requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=torch.ones((), dtype=dtype)))
    with pytest.raises(TypeError, match=f"Invalid lr of dtype {dtype}"):
        tuned.step(lambda: (x * x).sum())
    assert torch.equal(x, torch.ones(3)) and x.grad is None


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (lambda x: 3, TypeError, "it returned 3"),
        (lambda x: None, TypeError, "it returned None"),
        (lambda x: x * x, ValueError, r"of shape \(3,\)"),
        (lambda x: (x > 0).sum(), ValueError, "dtype torch.int64"),
    ],
)
def test_closures_that_return_no_loss(answer, error, text):
    x = torch.ones(3, requires_grad=True)
    tuned = lrt.LossGrad(lrt.SGD([x], lr=0.1))
    with pytest.raises(error, match=f"Invalid closure: {text}" if error is TypeError else f"Invalid closure: .*{text}"):
        tuned.step(lambda: answer(x))
    assert torch.equal(x, torch.ones(3))
    answers = iter([lambda: (x * x).sum(), lambda: answer(x)])
    with pytest.raises(error, match="Invalid closure"):
        tuned.step(lambda: next(answers)())


@pytest.mark.parametrize("native", [True, False])
def test_a_rate_that_groups_share_changes_once(native, monkeypatch):
    if not native:  # as on GPUs
        monkeypatch.setattr(lossgrad, "load_error", "none")
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    rate = torch.tensor(0.1, dtype=torch.float64)
    tuned = lrt.LossGrad(lrt.SGD([{"params": [param]} for param in params], lr=rate), c=2.0)
    for n in range(1, 3):
        tuned.step(lambda: sum((param * param).sum() for param in params))
        assert [float(group["lr"]) for group in tuned.param_groups] == [0.1 * 2**n] * 2


def test_flattened_parameters_have_no_slope():
    x = torch.ones(3, requires_grad=True)
    x._fsdp_flattened = True
    optimizer = lrt.SGD([x], lr=0.1)
    with pytest.raises(ValueError, match="Invalid optimizer: its parameters are flattened"):
        lrt.LossGrad(optimizer)


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match="Invalid model of type int"):
        lrt.LossGrad(lrt.SGD([torch.ones(3, requires_grad=True)], lr=0.1), model=3)
