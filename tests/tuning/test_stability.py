"""The stability probe: metrics known in closed form, and a model that a snapshot leaves as it was."""

import copy
import math
import sys
import types

import pytest
import torch
from helpers import same_bits
from torch import nn
from torch.nn import functional as F

from lrtricks_fused import SGD, StabilityProbe, StabilityReport

NAN, INF = math.nan, math.inf


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mse(output, target):
    return F.mse_loss(output, target)


def network() -> nn.Module:
    """Everything a forward may disturb: statistics, dropout, an embedding that renormalises its own weights."""
    torch.manual_seed(3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 6, max_norm=0.5)
            self.first = nn.Linear(6, 8)
            self.norm = nn.BatchNorm1d(8)
            self.act = nn.ReLU(inplace=True)
            self.drop = nn.Dropout(0.5)
            self.last = nn.Linear(8, 3)

        def forward(self, index):
            return self.last(self.drop(self.act(self.norm(self.first(self.table(index))))))

    return Net()


INDEX, LABELS = torch.tensor([0, 3, 3, 9, 5, 1, 7]), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def row(report: StabilityReport, layer: str) -> dict:
    return next(row for row in report.layers if row["layer"] == layer)


def compare(model, inputs, change, loss_fn=mse, targets=None, **options) -> StabilityReport:
    """The report of a change."""
    if targets is None:
        with torch.no_grad():
            targets = torch.zeros_like(copy.deepcopy(model)(inputs))
    probe = StabilityProbe(model, inputs, loss_fn, targets, **options)
    before = probe.snapshot()
    with torch.no_grad():
        change()
    return probe.compare(before, probe.snapshot())


# -- the metrics -------------------------------------------------------------------------------------------


def test_doubled_weights_of_a_linear_layer():
    model = nn.Linear(4, 3, bias=False).double()
    inputs, targets = batch(5, 4).double(), batch(5, 3, seed=1).double()
    w = model.weight.detach().clone()
    report = compare(model, inputs, lambda: model.weight.mul_(2), targets=targets)
    old = 2 * (inputs @ w.T - targets).T @ inputs / 15
    new = 2 * (2 * inputs @ w.T - targets).T @ inputs / 15
    (only,) = report.layers
    assert only["layer"] == ""
    assert only["activation_drift"] == pytest.approx(1, rel=1e-14)
    assert only["weight_drift"] == pytest.approx(1, rel=1e-14)
    assert only["gradient_cosine"] == pytest.approx(F.cosine_similarity(old.flatten(), new.flatten(), dim=0).item())
    assert report.outputs["loss_before"] == pytest.approx((inputs @ w.T - targets).square().mean().item())
    assert report.outputs["loss_after"] == pytest.approx((2 * inputs @ w.T - targets).square().mean().item())


def test_only_what_lies_behind_a_changed_layer_drifts():
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 5, bias=False), nn.Linear(5, 3, bias=False))
    report = compare(model, batch(6, 4), lambda: model[1].weight.mul_(1.25))
    assert [r["layer"] for r in report.layers] == ["0", "1", "2"]
    assert [r["weight_drift"] for r in report.layers] == [0.0, pytest.approx(0.25), 0.0]
    assert [r["activation_drift"] for r in report.layers] == [0.0, pytest.approx(0.25), pytest.approx(0.25)]
    # against targets 0 the loss is quadratic in the changed factor: all gradients keep their directions
    assert [r["gradient_cosine"] for r in report.layers] == [pytest.approx(1)] * 3


def test_a_reversed_gradient_has_cosine_minus_one():
    model = nn.Linear(4, 1, bias=False)
    report = compare(model, batch(5, 4), lambda: model.weight.mul_(-3))
    assert report.layers[0]["gradient_cosine"] == pytest.approx(-1)
    assert report.layers[0]["activation_drift"] == pytest.approx(4)


def test_a_layers_parameters_are_one_vector():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.copy_(torch.tensor([1.0, 1.0]))
    report = compare(model, batch(5, 2), lambda: model.bias.add_(torch.tensor([0.0, 1.0])))
    assert report.layers[0]["weight_drift"] == pytest.approx(0.5)  # 1 / sqrt(4)


def test_nothing_changed_is_no_drift():
    report = compare(network(), INDEX, lambda: None, F.cross_entropy, LABELS, training=True)
    for layer in report.layers:
        assert (layer["activation_drift"], layer["weight_drift"]) == (0.0, 0.0)
        assert layer["gradient_cosine"] == pytest.approx(1, abs=1e-12)
    assert report.outputs["prediction_churn"] == report.outputs["logit_kl"] == 0.0
    assert report.outputs["loss_before"] == report.outputs["loss_after"]


class Constant(nn.Module):
    """Its logits are its parameter."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits) if isinstance(logits, list) else logits.clone())

    def forward(self, _):
        return self.logits * 1


@pytest.mark.parametrize("shape, dim", [((9, 4), 1), ((9, 4), -1), ((9, 4), 0), ((3, 4, 5, 2), 1), ((3, 5, 4), -1)])
def test_churn_and_kl_against_torch(shape, dim):
    old, new = batch(*shape, seed=1), batch(*shape, seed=2)
    model = Constant(old)
    report = compare(model, batch(1), lambda: model.logits.copy_(new), class_dim=dim)
    predictions = old.numel() / shape[dim]
    log_q, log_p = new.double().log_softmax(dim), old.double().log_softmax(dim)
    kl = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / predictions  # torch's KL(target || input)
    assert report.outputs["logit_kl"] == pytest.approx(kl.item(), rel=1e-12)
    churn = (old.argmax(dim) != new.argmax(dim)).sum().item() / predictions
    assert 0 < churn < 1
    assert report.outputs["prediction_churn"] == pytest.approx(churn)


def test_masked_logits():
    model = Constant([[0.0, -INF, 0.0]])
    report = compare(
        model,
        batch(1),
        lambda: model.logits.copy_(torch.tensor([[math.log(3), -INF, 0.0]])),
        lambda output, _: output[:, 0].sum(),
    )
    assert report.outputs["logit_kl"] == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    report = compare(
        model,
        batch(1),
        lambda: model.logits.copy_(torch.tensor([[-INF, -INF, 0.0]])),
        lambda output, _: output[:, 2].sum(),
    )
    assert report.outputs["logit_kl"] == INF


def test_outputs_without_classes_have_no_churn():
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    report = compare(model, batch(5, 4), lambda: model[0].weight.mul_(2))
    assert math.isnan(report.outputs["prediction_churn"]) and math.isnan(report.outputs["logit_kl"])


def test_zero_norms():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
    still = compare(model, batch(4, 3), lambda: None)
    assert still.layers[0] == {"layer": "0", "activation_drift": 0.0, "gradient_cosine": 0.0, "weight_drift": 0.0}
    woken = compare(model, batch(4, 3), lambda: model[0].weight.fill_(1))
    assert woken.layers[0] == {"layer": "0", "activation_drift": INF, "gradient_cosine": 0.0, "weight_drift": INF}


def test_values_that_are_not_finite_are_not_called_stable():
    model = nn.Linear(3, 2, bias=False)
    report = compare(model, batch(4, 3), lambda: model.weight.fill_(NAN))
    assert all(math.isnan(report.layers[0][name]) for name in ("activation_drift", "gradient_cosine", "weight_drift"))
    assert math.isnan(report.outputs["logit_kl"]) and math.isnan(report.outputs["loss_after"])


def test_huge_and_tiny_values_are_measured_in_float64():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e30)  # its square overflows float32
    report = compare(model, torch.full((1, 2), 1e-12), lambda: model.weight.mul_(1.5), lambda output, _: output.sum())
    assert report.layers[0]["weight_drift"] == pytest.approx(0.5)
    assert report.layers[0]["gradient_cosine"] == pytest.approx(1)


def test_a_lower_learning_rate_is_measured_as_steadier():
    drifts = []
    for lr in (0.2, 0.02):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        inputs, labels = batch(20, 4), torch.arange(20) % 3
        probe = StabilityProbe(model, inputs, F.cross_entropy, labels)
        optimizer = SGD(model.parameters(), lr=lr)
        before = probe.snapshot()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        drifts.append(probe.compare(before, probe.snapshot()).layers)
    for fast, slow in zip(*drifts, strict=True):
        assert slow["weight_drift"] == pytest.approx(fast["weight_drift"] / 10, rel=1e-3)  # one step: lr |g| / |w|
        assert 0 < slow["activation_drift"] < 0.2 * fast["activation_drift"]


# -- layers ------------------------------------------------------------------------------------------------


def test_default_layers_own_parameters():
    model = nn.ModuleDict({"act": nn.ReLU(), "norm": nn.BatchNorm1d(3), "inner": nn.Sequential(nn.Linear(3, 3))})
    model.register_parameter("own", nn.Parameter(torch.ones(2)))
    model.forward = lambda x: model["inner"](model["norm"](x)) * model.own.sum()
    probe = StabilityProbe(model, batch(4, 3), mse, batch(4, 3))
    assert probe.layers == ["", "norm", "inner.0"]
    before = probe.snapshot()
    with torch.no_grad():
        model["inner"][0].weight.mul_(2)
    report = probe.compare(before, probe.snapshot())
    assert row(report, "")["weight_drift"] == 0.0  # its own two parameters only


def test_named_layers_have_all_parameters_below_them():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU()), nn.Linear(3, 2, bias=False))
    report = compare(model, batch(4, 3), lambda: model[0][0].weight.mul_(3), layers=["1", "0.1", "0"])
    assert [r["layer"] for r in report.layers] == ["1", "0.1", "0"]
    assert row(report, "0")["weight_drift"] == pytest.approx(2)
    assert row(report, "0.1")["activation_drift"] == pytest.approx(2)
    assert math.isnan(row(report, "0.1")["weight_drift"]) and math.isnan(row(report, "0.1")["gradient_cosine"])
    assert StabilityProbe(model, batch(4, 3), mse, 0, layers="0").layers == ["0"]
    with pytest.raises(ValueError, match=r"Invalid layers: '0\.2' is not a module"):
        StabilityProbe(model, batch(4, 3), mse, 0, layers=["0", "0.2"])


def test_a_frozen_layer_has_no_cosine():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    report = compare(model, batch(4, 3), lambda: model[1].weight.mul_(2))
    assert math.isnan(row(report, "0")["gradient_cosine"]) and not math.isnan(row(report, "1")["gradient_cosine"])
    model.requires_grad_(False)
    assert all(math.isnan(r["gradient_cosine"]) for r in compare(model, batch(4, 3), lambda: None).layers)


def test_a_parameter_frozen_in_between_leaves_the_cosine_to_the_others():
    model = nn.Linear(3, 2)
    report = compare(model, batch(4, 3), lambda: model.bias.requires_grad_(False))
    assert report.layers[0]["gradient_cosine"] == pytest.approx(1)


class Twice(nn.Module):
    """One layer called two times; a tied layer; one that is never called."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.layer.weight
        self.alias = self.layer
        self.unused = nn.Linear(3, 3)
        self.calls = 2

    def forward(self, x):
        for _ in range(self.calls):
            x = self.alias(x)
        return self.tied(x)


def test_several_calls_are_one_vector():
    model, inputs = Twice(), batch(4, 3)
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(3))
    report = compare(model, inputs, lambda: model.layer.weight.mul_(2))
    assert [r["layer"] for r in report.layers] == ["layer", "tied", "unused"]
    # x, x -> 2x, 4x: |(1, 3)| / |(1, 1)|
    assert row(report, "layer")["activation_drift"] == pytest.approx(math.sqrt(10 / 2))
    assert row(report, "tied")["activation_drift"] == pytest.approx(7)
    assert row(report, "layer")["weight_drift"] == row(report, "tied")["weight_drift"] == pytest.approx(1)
    unused = row(report, "unused")
    assert math.isnan(unused["activation_drift"]) and math.isnan(unused["gradient_cosine"])
    assert unused["weight_drift"] == 0.0


def test_another_number_of_calls_has_no_drift():
    model = Twice()
    report = compare(model, batch(4, 3), lambda: setattr(model, "calls", 3))
    assert math.isnan(row(report, "layer")["activation_drift"])
    assert compare(model, batch(4, 3), lambda: None, layers=["alias"]).layers[0]["activation_drift"] == 0.0


def test_tuple_outputs():
    model = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    inputs = batch(2, 5, 3)
    (out, (hidden, cell)) = model(inputs)
    old = torch.cat([out.flatten(), hidden.flatten(), cell.flatten()]).detach()
    targets = torch.zeros_like(out)
    report = compare(model, inputs, lambda: model.weight_hh_l1.mul_(2), lambda o, t: mse(o[0], t), targets)
    (out, (hidden, cell)) = model(inputs)
    new = torch.cat([out.flatten(), hidden.flatten(), cell.flatten()]).detach()
    assert report.layers[0]["activation_drift"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)
    assert report.outputs["prediction_churn"] >= 0  # the first tensor of the output


def test_activations_are_those_before_an_operation_in_place():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.copy_(-torch.ones(4, 3))
    report = compare(model, torch.ones(2, 3), lambda: model[0].weight.mul_(2))
    assert report.layers[0]["activation_drift"] == pytest.approx(1)  # after the ReLU all are 0


def test_sparse_gradients_and_complex_layers():
    table = nn.Embedding(5, 3, sparse=True)
    report = compare(table, torch.tensor([1, 2, 2]), lambda: table.weight.mul_(2))
    assert report.layers[0]["gradient_cosine"] == pytest.approx(1)
    model = nn.Linear(2, 2, bias=False, dtype=torch.complex64)
    inputs = torch.ones(1, 2, dtype=torch.complex64)
    report = compare(model, inputs, lambda: model.weight.mul_(1j), lambda out, _: out.abs().square().sum(), layers=[""])
    assert report.layers[0]["weight_drift"] == pytest.approx(math.sqrt(2))
    assert report.layers[0]["gradient_cosine"] == pytest.approx(0, abs=1e-6)
    assert math.isnan(report.outputs["prediction_churn"]) and math.isnan(report.outputs["logit_kl"])


def test_checkpointed_layers_are_recorded_once():
    inner = nn.Linear(3, 3)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    probe = StabilityProbe(Checkpointed(), batch(2, 3), mse, batch(2, 3))
    snapshot = probe.snapshot()
    assert len(snapshot.layers["inner"].activations) == 1
    assert all(grad is not None for grad in snapshot.layers["inner"].grads)


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


# -- the report --------------------------------------------------------------------------------------------

REPORT = StabilityReport(
    [
        {"layer": "a", "activation_drift": 0.5, "gradient_cosine": 0.9, "weight_drift": 0.1},
        {"layer": "", "activation_drift": NAN, "gradient_cosine": NAN, "weight_drift": INF},
    ],
    {"prediction_churn": 0.25, "logit_kl": 0.01, "loss_before": 2.0, "loss_after": 1.5},
)


def test_a_frame_with_pandas(monkeypatch):
    fake = types.ModuleType("pandas")
    fake.DataFrame = lambda rows: ("frame", rows)
    monkeypatch.setitem(sys.modules, "pandas", fake)
    kind, rows = REPORT.to_frame()
    assert kind == "frame" and rows == REPORT.layers


def test_a_list_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = REPORT.to_frame()
    assert rows == REPORT.layers and rows[0] is not REPORT.layers[0]


def test_plot(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots()
    assert REPORT.plot(ax) is ax
    drifts = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drifts["activation_drift"][0] == 0.5 and math.isnan(drifts["activation_drift"][1])
    assert drifts["weight_drift"][0] == 0.1 and math.isnan(drifts["weight_drift"][1])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "(model)"]
    assert ax.get_yscale() == "log" and "churn 0.25" in ax.get_title()
    (right,) = [axes for axes in figure.axes if axes is not ax]
    assert right.get_lines()[0].get_ydata()[0] == 0.9
    own = REPORT.plot()
    assert own is not ax
    own.figure.savefig(tmp_path / "stability.png")
    still = StabilityReport([dict(REPORT.layers[0], activation_drift=0.0, weight_drift=0.0)], REPORT.outputs).plot()
    still.figure.savefig(tmp_path / "still.png")
    pyplot.close("all")


def test_plot_without_matplotlib_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="needs matplotlib"):
        REPORT.plot()


def test_matplotlib_and_pandas_are_not_imported_with_the_package():
    import subprocess

    code = "import sys, lrtricks_fused; print([m for m in ('matplotlib', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
