"""The stability probe: metrics known in closed form, of layers, and their report."""

import math
import sys
import types

import pytest
import torch
from probed import INDEX, LABELS, Constant, batch, compare, mse, network, row
from torch import nn
from torch.nn import functional as F

from lrtricks_fused import SGD, StabilityProbe, StabilityReport

NAN, INF = math.nan, math.inf


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
