"""The stability probe: what a snapshot takes, and a model that it leaves as it was."""

import math

import pytest
import torch
from helpers import same_bits
from probed import INDEX, LABELS, Constant, batch, mse, network
from torch import nn
from torch.nn import functional as F

from lrtricks_fused import SGD, StabilityProbe

NAN, INF = math.nan, math.inf


# -- inputs ------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(3, 2, bias=False)

    def forward(self, left, right=None):
        left = left[0] if isinstance(left, list) else left
        return self.scale(left + (0 if right is None else right))


@pytest.mark.parametrize("pack", [
    lambda a, b: a + b, lambda a, b: (a, b), lambda a, b: {"right": b, "left": a}, lambda a, b: [a + b],
], ids=["tensor", "tuple", "dict", "list"])  # fmt: skip
def test_inputs_are_passed_as_they_are_packed(pack):
    model, left, right = Sum(), batch(4, 3), batch(4, 3, seed=1)
    probe = StabilityProbe(model, pack(left, right), mse, torch.zeros(4, 2))
    assert same_bits(probe.snapshot().logits, model(left + right))


def test_the_probe_keeps_its_own_batch():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    inputs, targets = batch(4, 3), batch(4, 2)
    kept = inputs.clone()

    def loss_fn(output, target):
        return mse(output.clone(), target.add_(1))

    probe = StabilityProbe(model, inputs, loss_fn, targets)
    before = probe.snapshot()
    assert same_bits(inputs, kept)
    inputs.zero_()
    targets.zero_()
    after = probe.snapshot()
    assert after.loss == before.loss and same_bits(after.logits, before.logits)


def test_the_loss_must_be_one_number():
    model = nn.Linear(3, 2)
    for loss_fn, what in [(lambda o, _: o, r"a tensor of shape \(4, 2\)"), (lambda o, _: 1.0, "float")]:
        with pytest.raises(ValueError, match=f"Invalid loss_fn: it returned {what}"):
            StabilityProbe(model, batch(4, 3), loss_fn, None).snapshot()
    model.forward = lambda x: "no tensor"
    with pytest.raises(ValueError, match="Invalid model: its output holds no tensor, it is a str"):
        StabilityProbe(model, batch(4, 3), mse, None).snapshot()


def test_it_works_under_no_grad_and_inference_mode():
    model = nn.Linear(3, 2)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            probe = StabilityProbe(model, batch(4, 3), mse, batch(4, 2))
            before = probe.snapshot()
            assert torch.is_grad_enabled() is False
        assert probe.compare(before, probe.snapshot()).layers[0]["gradient_cosine"] == pytest.approx(1)


# -- the model is left alone -------------------------------------------------------------------------------


class Trace:
    """Everything about a model that a snapshot must leave as it was."""

    def __init__(self, model):
        self.model = model
        self.tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.values = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.grads = {name: tensor.grad for name, tensor in self.tensors.items()}
        self.grad_values = {name: grad.clone() for name, grad in self.grads.items() if grad is not None}
        self.flags = {name: tensor.requires_grad for name, tensor in self.tensors.items()}
        self.modes = [module.training for module in model.modules()]
        self.hooks = [dict(module._forward_hooks) for module in model.modules()]
        self.rng = torch.get_rng_state()
        self.cuda_rng = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def assert_same(self):
        now = Trace(self.model)
        assert list(now.tensors) == list(self.tensors)
        for name in self.tensors:
            assert now.tensors[name] is self.tensors[name], name
            assert same_bits(now.values[name], self.values[name]), name
            assert now.grads[name] is self.grads[name], name
        assert all(same_bits(now.grad_values[name], values) for name, values in self.grad_values.items())
        assert (now.flags, now.modes, now.hooks) == (self.flags, self.modes, self.hooks)
        assert torch.equal(now.rng, self.rng)
        assert all(torch.equal(a, b) for a, b in zip(now.cuda_rng, self.cuda_rng, strict=True))


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [False, True])
def test_a_snapshot_leaves_the_model_as_it_was(training, device):
    model = network().to(device)
    model.norm.eval()  # mixed modes
    model.first.bias.requires_grad_(False)
    model.last.weight.grad = batch(3, 8).to(device)
    model.last.bias.data[0] = -0.0
    with torch.no_grad():
        model.table.weight[3] = 5.0  # above max_norm: the forward writes it
        model.table.weight[8] = NAN
    model.first.register_forward_hook(lambda *_: None)
    probe = StabilityProbe(model, INDEX.to(device), F.cross_entropy, LABELS.to(device), training=training)
    trace = Trace(model)
    snapshot = probe.snapshot()
    trace.assert_same()
    assert same_bits(snapshot.layers["table"].weights[0], model.table.weight.cpu())
    assert all(t.device.type == "cpu" for layer in snapshot.layers.values() for t in layer.activations + layer.weights)


def test_the_modes_are_those_asked_for():
    model = network()
    model.norm.eval()
    seen = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    for training in (False, True):
        seen.clear()
        StabilityProbe(model, INDEX, F.cross_entropy, LABELS, training=training).snapshot()
        assert seen == [training] * 7


def test_snapshots_do_not_share_memory_with_the_model():
    model = nn.Linear(3, 2)
    probe = StabilityProbe(model, batch(4, 3), mse, batch(4, 2))
    snapshot = probe.snapshot()
    weights, logits = snapshot.layers[""].weights[0].clone(), snapshot.logits.clone()
    with torch.no_grad():
        model.weight.zero_()
    probe.snapshot()
    assert same_bits(snapshot.layers[""].weights[0], weights) and same_bits(snapshot.logits, logits)


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_an_exception_leaves_the_model_as_it_was(where):
    model = network()

    def fail(*_):
        raise KeyError(where)

    if where == "forward":  # behind BatchNorm and dropout
        model.last.forward = fail
    probe = StabilityProbe(model, INDEX, fail if where == "loss" else F.cross_entropy, LABELS, training=True)
    trace = Trace(model)
    with pytest.raises(KeyError, match=where):
        probe.snapshot()
    trace.assert_same()


def test_a_forward_that_replaces_its_buffers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return x * self.weight

    model = Counting()
    trace = Trace(model)
    StabilityProbe(model, batch(2, 3), mse, batch(2, 3)).snapshot()
    trace.assert_same()


def test_the_sign_of_a_zero_comes_back():
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_buffer("zero", torch.zeros(2))

    def negate(module, _):
        module.zero.neg_()

    model.register_forward_pre_hook(negate)
    trace = Trace(model)
    StabilityProbe(model, batch(2, 3), mse, batch(2, 2)).snapshot()
    trace.assert_same()


def test_a_graph_that_waits_for_its_backward_stays_valid():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inputs, targets = batch(5, 3), batch(5, 2)
    loss = mse(model(inputs), targets)
    StabilityProbe(model, inputs, mse, targets).snapshot()
    loss.backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_dropout_masks_come_from_the_seed(seeds):
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2))
    logits = []
    for seed in seeds:
        torch.manual_seed(99 + len(logits))  # the user's own generator does not matter
        logits.append(StabilityProbe(model, batch(4, 3), mse, batch(4, 2), training=True, seed=seed).snapshot().logits)
    assert same_bits(*logits) == (seeds[0] == seeds[1])


def test_training_with_snapshots_is_training_without():
    runs = []
    for probing in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        probe = StabilityProbe(model, INDEX, F.cross_entropy, LABELS, training=True)
        for _ in range(4):
            if probing:
                probe.snapshot()
            optimizer.zero_grad()
            F.cross_entropy(model(INDEX), LABELS).backward()
            optimizer.step()
        runs.append(model.state_dict())
    assert all(same_bits(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))


# -- comparing ---------------------------------------------------------------------------------------------


def test_snapshots_of_another_probe_are_refused():
    model = nn.Linear(3, 2)
    one = StabilityProbe(model, batch(4, 3), mse, batch(4, 2))
    other = StabilityProbe(model, batch(4, 3, seed=1), mse, batch(4, 2))
    own, foreign = one.snapshot(), other.snapshot()
    with pytest.raises(ValueError, match="Invalid before: a snapshot of another probe"):
        one.compare(foreign, own)
    with pytest.raises(ValueError, match="Invalid after: a snapshot of another probe"):
        one.compare(own, foreign)
    with pytest.raises(TypeError, match="Invalid after: must be a snapshot, not dict"):
        one.compare(own, {})


def test_changed_shapes_are_named():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    probe = StabilityProbe(model, batch(4, 3), lambda out, _: out.sum(), None)
    before = probe.snapshot()
    model[0].weight, model[0].bias = nn.Parameter(torch.ones(2, 3)), None
    with pytest.raises(ValueError, match=r"Invalid after: the parameters of layer '0' have shapes \[\(2, 3\)\]"):
        probe.compare(before, probe.snapshot())
    reshaping = Constant(torch.ones(2, 3))
    probe = StabilityProbe(reshaping, batch(1), lambda out, _: out.sum(), None)
    before = probe.snapshot()
    reshaping.register_forward_hook(lambda module, args, output: output[:1])
    with pytest.raises(ValueError, match=r"Invalid after: the model's outputs have shapes \[\(1, 3\)\]"):
        probe.compare(before, probe.snapshot())
