"""Under a default device that is not there, or holds no values, all runs as without: every tensor names its own."""

import copy

import pytest
import torch
from schedulers import SCHEDULERS

import lrtricks_fused as lrt
from lrtricks_fused.schedules.subnetworks import SubnetworkLR, layer_groups
from lrtricks_fused.stability.probe import StabilityProbe
from lrtricks_fused.tuning.baselines import L4Adam, L4Mom, WNGrad
from lrtricks_fused.tuning.lossgrad import adapt


@pytest.fixture(params=["cuda:9999999", "meta"])
def elsewhere(request):
    """A default device on which nothing can be computed."""
    torch.set_default_device(request.param)
    yield
    torch.set_default_device(None)


def here(*shape, value=1.0):
    return torch.full(shape, value, device="cpu").requires_grad_()


def groups_of(optimizer):
    for group in optimizer.param_groups:
        yield from (value for value in group.values() if isinstance(value, torch.Tensor))
        yield from (p for p in group["params"])


def assert_on_cpu(optimizer):
    tensors = [*groups_of(optimizer), *(v for s in optimizer.state.values() for v in s.values())]
    assert all(t.is_cpu for t in tensors if isinstance(t, torch.Tensor))


def stepped(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, 0.5)
    optimizer.step()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rate_schedulers(name, tensor):
    cls, kwargs, formula = SCHEDULERS[name]
    lr = torch.tensor(0.4, dtype=torch.float64, device="cpu") if tensor else 0.4
    optimizer = torch.optim.SGD([here(3)], lr=lr)
    scheduler = cls(optimizer, 7, **kwargs, min_lr=0.01)
    for t in range(1, 5):
        stepped(optimizer)
        scheduler.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(formula(t, 0.4, 0.01), rel=1e-12)
        if t == 2:  # the saved one goes on, and one more group
            scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
            optimizer.add_param_group({"params": [here(2)], "lr": copy.deepcopy(lr)})
    assert_on_cpu(optimizer)
    saved = scheduler.state_dict()
    lists = [saved[key] for key in ("_peaks", "_last_lr", "base_lrs")]
    assert all(t.is_cpu for values in lists for t in values if isinstance(t, torch.Tensor))


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("cls", [lrt.KeepProb, lrt.GradientWeight])
@pytest.mark.parametrize("schedule", [lrt.linear(0.2, 1.0), lrt.random_gradient(seed=3), lrt.late()], ids=repr)
def test_group_schedules(cls, schedule, tensor):
    value = torch.tensor(1.0, device="cpu") if tensor else 1.0
    optimizer = lrt.SGD([{"params": [here(3)], cls.name: value}], lr=0.1)
    weights = cls(optimizer, schedule, 4)
    for _ in range(3):
        weights.step()
    weights.load_state_dict(weights.state_dict())
    assert float(optimizer.param_groups[0][cls.name]) == pytest.approx(weights.get_last_value())
    assert_on_cpu(optimizer)


@pytest.mark.usefixtures("elsewhere")
def test_gradient_weight_of_another_optimizer():
    param = here(3)
    optimizer = torch.optim.SGD([param], lr=1.0)
    lrt.GradientWeight(optimizer, lrt.constant(0.5), 4)
    stepped(optimizer)
    assert param.tolist() == [0.75] * 3


@pytest.mark.usefixtures("elsewhere")
def test_subnetworks():
    with torch.device("cpu"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    lr = torch.tensor(0.5, device="cpu")
    optimizer = torch.optim.SGD(layer_groups(model, ["0"], lr=lr), lr=0.1)
    scheduler = SubnetworkLR(optimizer, "0", lambda step: 0.5**step)
    for _ in range(2):
        stepped(optimizer)
        scheduler.step()
    assert lr == 0.125 and optimizer.param_groups[0]["lr"] is lr
    assert_on_cpu(optimizer)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("options", [{}, {"reject_nonfinite": True, "replay_rng": True}])
def test_lossgrad(options):
    def run():
        param = here(3)
        tuned = lrt.LossGrad(lrt.SGD([param], lr=0.1), c=2.0, **options)
        assert tuned.ratio.is_cpu
        for _ in range(3):
            tuned.step(lambda: (param * param).sum())
        tuned.load_state_dict(tuned.state_dict())
        assert_on_cpu(tuned)
        assert tuned.ratio.is_cpu
        return param.tolist(), float(tuned.param_groups[0]["lr"])

    there = run()
    torch.set_default_device(None)
    assert there == run()


@pytest.mark.usefixtures("elsewhere")
def test_lossgrads_decision_native_and_not():
    scalars = [torch.tensor(value, dtype=torch.float64, device="cpu") for value in (2.0, 1.5, 1.0, 0.1)]
    for dtype in (torch.float64, torch.float16):  # of lr; the second has no native one
        *given, lr = scalars
        lr = lr.to(dtype, copy=True)
        assert adapt(*given, [lr], 2.0, 1e-6).is_cpu and float(lr) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("cls", [WNGrad, L4Mom, L4Adam])
def test_baselines(cls):
    param = here(3)
    optimizer = cls([param])

    def closure():
        optimizer.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert losses[2] != losses[0]
    assert_on_cpu(optimizer)


@pytest.mark.usefixtures("elsewhere")
def test_stability_probe():
    with torch.device("cpu"):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        inputs, targets = torch.ones(5, 3), torch.zeros(5, dtype=torch.long)
    probe = StabilityProbe(model, inputs, torch.nn.functional.cross_entropy, targets)
    before = probe.snapshot()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    report = probe.compare(before, probe.snapshot())
    assert report.layers[0]["weight_drift"] > 0 and report.outputs["logit_kl"] >= 0
