"""Parameter groups by layer, and schedulers that touch some of them only."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, SequentialLR

from lrtricks_fused import SGD, SubnetworkLR, WNGrad, layer_groups


class Net(nn.Module):
    """Names that are prefixes of each other, a tied weight, a parameter of the root, a layer without parameters."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        self.layer10 = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = self.layer1[0].weight
        self.scale = nn.Parameter(torch.ones(2))
        self.scale.requires_grad_(False)


def named(model: nn.Module, groups: list) -> list:
    """Groups with the parameters' names in place of the parameters."""
    names = {param: name for name, param in model.named_parameters()}
    return [(group["name"], [names[param] for param in group["params"]]) for group in groups]


LAYER1 = ["layer1.0.weight", "layer1.0.bias", "layer1.2.weight", "layer1.2.bias"]
LAYER10 = ["layer10.weight", "layer10.bias"]


@pytest.mark.parametrize("layers, expected", [
    ("layer1", [("layer1", LAYER1), ("rest", ["scale", *LAYER10])]),
    (["layer10", "layer1"], [("layer10", LAYER10), ("layer1", LAYER1), ("rest", ["scale"])]),
    (["layer1", "layer1.2"],
     [("layer1", LAYER1[:2]), ("layer1.2", LAYER1[2:]), ("rest", ["scale", *LAYER10])]),
    (["layer1.2.bias", "scale"],
     [("layer1.2.bias", LAYER1[3:]), ("scale", ["scale"]), ("rest", LAYER1[:3] + LAYER10)]),
    # the tied weight: by its other name, unless its first name is claimed
    (["head"], [("head", LAYER1[:1]), ("rest", ["scale", *LAYER1[1:], *LAYER10])]),
    (["layer10", "layer1", "scale"], [("layer10", LAYER10), ("layer1", LAYER1), ("scale", ["scale"])]),
])  # fmt: skip
def test_groups(layers, expected):
    model = Net()
    groups = layer_groups(model, layers)
    assert named(model, groups) == expected
    everything = [param for group in groups for param in group["params"]]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))
    order = {param: index for index, param in enumerate(model.parameters())}
    for group in groups:
        assert group["params"] == sorted(group["params"], key=order.get)


def test_options():
    model = Net()
    groups = layer_groups(model, {"layer1": {"lr": 0.5}, "layer10": {}}, rest="others", lr=0.1, momentum=0.9)
    optimizer = SGD(groups, lr=1e-3)
    assert [(g["name"], g["lr"], g["momentum"]) for g in optimizer.param_groups] == [
        ("layer1", 0.5, 0.9), ("layer10", 0.1, 0.9), ("others", 1e-3, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [SGD, torch.optim.SGD, WNGrad])
def test_named_parameters(kind):
    model = Net()
    optimizer = kind(layer_groups(model, ["layer10"], named=True), lr=0.1)
    assert [group["param_names"] for group in optimizer.param_groups] == [LAYER10, ["scale", *LAYER1]]
    assert optimizer.param_groups[0]["params"][0] is model.layer10.weight
    assert SubnetworkLR(optimizer, "layer10", lambda step: 0.5).get_last_lr() == [0.05, 0.1]


@pytest.mark.parametrize("layers, options, error, message", [
    (["layer1", "layer2"], {}, ValueError, "Invalid layers: 'layer2' is not in the model"),
    (["layer"], {}, ValueError, "Invalid layers: 'layer' is not in the model"),
    ([""], {}, ValueError, "Invalid layers: '' is not in the model"),
    (["layer1", "layer1"], {}, ValueError, "Invalid layers: 'layer1' is there twice"),
    (["layer1.1"], {}, ValueError, "Invalid layers: no parameter is left for 'layer1.1'"),
    (["layer1", "head"], {}, ValueError, "Invalid layers: no parameter is left for 'head'"),
    ([], {}, ValueError, "Invalid layers: there is no name"),
    ([3], {}, TypeError, "Invalid layers: 3 is not a name"),
    (["head"], {"rest": "head"}, ValueError, "Invalid rest='head'"),
])  # fmt: skip
def test_bad_layers_are_named(layers, options, error, message):
    with pytest.raises(error, match=message):
        layer_groups(Net(), layers, **options)


def grouped(kind=SGD, lr=0.1, **options) -> torch.optim.Optimizer:
    return kind(layer_groups(Net(), {"layer1": {"lr": lr}, "layer10": {"lr": 2 * lr}}), lr=3 * lr, **options)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def run(optimizer, *schedulers, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        seen.append(rates(optimizer))
    return seen


def test_only_the_named_groups_decay():
    optimizer = grouped()
    scheduler = SubnetworkLR(optimizer, ["layer10"], lambda step: 1 / (1 + step))
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    seen = run(optimizer, scheduler, steps=4)
    assert seen == [[0.1, 0.2 * (1 / (1 + step)), pytest.approx(0.3)] for step in range(1, 5)]
    assert scheduler.get_last_lr() == seen[-1]


def test_it_agrees_with_lambda_lr_on_all_groups():
    ours, torchs = grouped(), grouped()
    names = ["layer1", "layer10", "rest"]
    ours_seen = run(ours, SubnetworkLR(ours, names, lambda step: 0.9**step), steps=5)
    assert ours_seen == run(torchs, LambdaLR(torchs, lambda step: 0.9**step), steps=5)


def test_what_others_write_into_other_groups_stays():
    optimizer = grouped()
    scheduler = SubnetworkLR(optimizer, "layer1", lambda step: 0.5**step)
    optimizer.param_groups[2]["lr"] = 7.0
    assert run(optimizer, scheduler, steps=2)[-1] == [0.025, 0.2, 7.0]


def test_two_of_them_side_by_side():
    optimizer = grouped()
    first = SubnetworkLR(optimizer, "layer1", lambda step: 0.5**step)
    second = SubnetworkLR(optimizer, ["layer10", "rest"], lambda step: 0.1**step)
    assert run(optimizer, first, second, steps=2)[-1] == pytest.approx([0.025, 0.002, 0.003])


def test_chained_with_a_recursive_scheduler_it_rules_its_own_groups():
    optimizer = grouped()
    everywhere = ExponentialLR(optimizer, 0.5)
    frozen = SubnetworkLR(optimizer, "layer10", lambda step: 0.0)
    assert run(optimizer, everywhere, frozen, steps=2)[-1] == pytest.approx([0.025, 0.0, 0.075])


def test_in_sequential_lr():
    optimizer = grouped()
    schedulers = [SubnetworkLR(optimizer, "layer1", lambda step: 1.0), SubnetworkLR(optimizer, "layer1", lambda s: 0.5)]
    seen = run(optimizer, SequentialLR(optimizer, schedulers, milestones=[2]), steps=3)
    assert [rate[0] for rate in seen] == [0.1, 0.05, 0.05]
    assert all(rate[1:] == [0.2, pytest.approx(0.3)] for rate in seen)


def test_tensor_rates_are_written_in_place():
    lr = torch.tensor(0.5)
    groups = [dict(group, lr=lr.clone()) for group in layer_groups(Net(), "layer1")]
    optimizer = SGD(groups, lr=1.0)
    tensors = [group["lr"] for group in optimizer.param_groups]
    seen = run(optimizer, SubnetworkLR(optimizer, "layer1", lambda step: 0.5**step), steps=2)
    assert seen[-1] == [0.125, 0.5]
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))


class Halving:
    """A factor with state, which the scheduler saves."""

    def __init__(self, base):
        self.base = base

    def __call__(self, step):
        return self.base**step


def test_a_resumed_schedule_is_the_uninterrupted_one():
    optimizer = grouped()
    scheduler = SubnetworkLR(optimizer, "layer10", Halving(0.5))
    run(optimizer, scheduler, steps=3)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    resumed = grouped(lr=5.0)
    again = SubnetworkLR(resumed, "layer10", Halving(0.9))
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert run(resumed, again, steps=4) == run(optimizer, scheduler, steps=4)
    continued = SubnetworkLR(resumed, "layer10", Halving(0.5), last_epoch=9)
    assert continued.get_last_lr()[1] == 0.2 * 0.5**10


@pytest.mark.parametrize("names, factor, error, message", [
    (["layer1", "layer3"], abs, ValueError, "Invalid names: 'layer3' is not the name of a group"),
    (["layer1", "layer1"], abs, ValueError, "Invalid names: 'layer1' is there twice"),
    ([], abs, ValueError, "Invalid names: there is no name"),
    (["layer1"], 0.5, TypeError, "Invalid lr_lambda=0.5"),
])  # fmt: skip
def test_bad_arguments_are_named_and_change_nothing(names, factor, error, message):
    optimizer = grouped()
    with pytest.raises(error, match=message):
        SubnetworkLR(optimizer, names, factor)
    assert rates(optimizer) == [0.1, 0.2, pytest.approx(0.3)]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_a_frozen_subnetwork_does_not_move():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = SGD(layer_groups(model, ["0"]), lr=0.1)
    scheduler = SubnetworkLR(optimizer, "0", lambda step: 0.0)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias"}
