"""Network stability on digits across a learning rate decay: ``python -m examples.stability``.

The article says that a lower learning rate steadies forward activations and backward signals, also for sub-networks.
A StabilityProbe compares the network before and after one window of training, right after the decay; the control is the
same window without decay. The metrics are ours: the stored article shows none. Keep 0.1 has the mean step of a decay to
a tenth, as a tenth of the parameters move at a time.
"""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import nn

from lrtricks_fused import SGD, StabilityProbe, StabilityReport, SubnetworkLR, layer_groups

from .digits import BATCH, TRAIN_IMAGES, load_split, make_model
from .figures import BLACK, BLUE, GREY, ORANGE, plt
from .reporting import Report, figure, legend_below, parse, present
from .study import CLEAR, Difference, outcome

FACTOR = 0.1
LR, MOMENTUM = 0.1, 0.9
WINDOW = 2  # epochs between the snapshots
LAYERS = {"0": "first", "2": "second", "4": "last"}
METRICS = ("activation_drift", "gradient_cosine", "weight_drift")
CONTROL, ALL, MASK = "no decay", "all layers / 10", f"keep {FACTOR:g}"
# Arm -> layers whose learning rate is decayed; a colour.
DECAYED: dict[str, tuple[str, ...]] = {
    CONTROL: (), ALL: ("0", "2", "4"), "first / 10": ("0",), "first two / 10": ("0", "2"), "last / 10": ("4",),
    MASK: (),
}  # fmt: skip
COLORS = dict(zip(DECAYED, (GREY, ORANGE, BLUE, "#009E73", "#CC79A7", BLACK), strict=True))

Reports = dict[str, list[StabilityReport]]  # arm -> one report per seed


class _Training:
    """A network in training; ``seed`` sets all that is random."""

    def __init__(self, seed: int) -> None:
        self.split = load_split(seed)
        self.model = make_model(seed)
        self.optimizer = SGD(layer_groups(self.model, list(LAYERS)), lr=LR, momentum=MOMENTUM, seed=seed)
        self.order = torch.Generator().manual_seed(seed)
        self.probe = StabilityProbe(
            self.model, self.split.test_images, nn.functional.cross_entropy, self.split.test_labels
        )

    def advance(self, epochs: int) -> None:
        """Train on."""
        for _ in range(epochs):
            for batch in torch.randperm(TRAIN_IMAGES, generator=self.order).split(BATCH):
                self.optimizer.zero_grad()
                logits = self.model(self.split.train_images[batch])
                nn.functional.cross_entropy(logits, self.split.train_labels[batch]).backward()
                self.optimizer.step()


def compare(arm: str, seed: int, epochs: int) -> StabilityReport:
    """Train for ``epochs``, decay as the arm says, and compare the network before and after the window."""
    training = _Training(seed)
    training.advance(epochs)
    before = training.probe.snapshot()
    if DECAYED[arm]:
        SubnetworkLR(training.optimizer, DECAYED[arm], lambda step: FACTOR)
    if arm == MASK:
        for group in training.optimizer.param_groups:
            group["keep_prob"] = FACTOR
    training.advance(WINDOW)
    return training.probe.compare(before, training.probe.snapshot())


def ratio(reports: Reports, arm: str, layer: str, metric: str, control: str = CONTROL) -> Difference:
    """Paired difference in log(metric) between an arm and the control."""
    logs = [
        [
            math.log(max(row[metric], 1e-12))
            for report in reports[name]
            for row in report.layers
            if row["layer"] == layer
        ]
        for name in (arm, control)
    ]
    return Difference.of(*logs)


def metric_of(reports: Reports, arm: str, layer: str, metric: str) -> list[float]:
    """A layer's metric, per seed."""
    return [row[metric] for report in reports[arm] for row in report.layers if row["layer"] == layer]


def tabulate(reports: Reports, seeds: int, epochs: int) -> Report:
    """Of every arm the churn and KL of its outputs, and its layers' metrics below."""
    columns = ("arm: layer", "activation drift", "gradient cosine", "weight drift", "churn (%)", "logit KL")
    title = f"Stability over {WINDOW} epochs after {epochs}, digits, SGD with momentum, {seeds} seeds (means)"
    report = Report(title, columns)
    for arm, of_arm in reports.items():
        churn = 100 * mean(r.outputs["prediction_churn"] for r in of_arm)
        kl = mean(r.outputs["logit_kl"] for r in of_arm)
        report.rows.append((arm, "", "", "", f"{churn:.2f}", f"{kl:.4f}"))
        for layer, name in LAYERS.items():
            cells = [f"{mean(metric_of(reports, arm, layer, metric)):.3f}" for metric in METRICS]
            report.rows.append((f"{arm}: {name}", *cells, "", ""))
    report.verdicts = verdicts(reports)
    return report


def _factor(difference: Difference) -> str:
    low, high = (math.exp(difference.mean + s * difference.standard_error) for s in (-1, 1))
    return f"{math.exp(difference.mean):.2f} ({low:.2f}-{high:.2f})"


def shows(sentence: str, ratios: dict[str, Difference]) -> str:
    """Whether every ratio (as logarithms) lies clearly below 1."""
    came = outcome(Difference(-d.mean, d.standard_error) for d in ratios.values())
    numbers = ", ".join(f"{name} {_factor(difference)}" for name, difference in ratios.items())
    return (
        f'"{sentence}" {came} in this run; as a factor of the control, geometric mean ± standard error, clear beyond '
        f"{CLEAR}: {numbers}."
    )


def verdicts(reports: Reports) -> list[str]:
    """The article's claim for all layers and for sub-networks, and what a mask does at the same mean step."""
    drift = "activation_drift"
    result = [
        shows(
            "A decay of all learning rates steadies activations",
            {name: ratio(reports, ALL, layer, drift) for layer, name in LAYERS.items()},
        )
    ]
    cosines = {
        name: Difference.of(
            metric_of(reports, ALL, layer, "gradient_cosine"), metric_of(reports, CONTROL, layer, "gradient_cosine")
        )
        for layer, name in LAYERS.items()
    }
    numbers = ", ".join(f"{name} {d.mean:+.2f} ± {d.standard_error:.2f}" for name, d in cosines.items())
    came = outcome(cosines.values())
    result.append(f'"... and backward signals" {came}: gradient cosine against the control {numbers}.')
    for arm, decayed in DECAYED.items():
        if decayed and arm != ALL:
            others = {name: ratio(reports, arm, layer, drift) for layer, name in LAYERS.items() if layer not in decayed}
            result.append(shows(f"'{arm}' steadies the activations of the layers that are not decayed", others))
    masked = {name: ratio(reports, MASK, layer, drift, ALL) for layer, name in LAYERS.items()}
    result.append(shows(f"'{MASK}' is steadier than '{ALL}', which has the same mean step", masked))
    return result


def _lines(axis: plt.Axes, reports: Reports, metric: str) -> None:
    """Means and standard errors over the layers, the arms side by side."""
    for number, arm in enumerate(reports):
        values = [metric_of(reports, arm, layer, metric) for layer in LAYERS]
        places = [layer + 0.06 * (number - (len(reports) - 1) / 2) for layer in range(len(LAYERS))]
        errors = [stdev(v) / len(v) ** 0.5 for v in values]
        axis.errorbar(places, [mean(v) for v in values], yerr=errors, marker="o", markersize=4, capsize=2, linewidth=1,
                      linestyle="--" if arm == MASK else "-", color=COLORS[arm], label=arm)  # fmt: skip
    axis.set_xticks(range(len(LAYERS)), list(LAYERS.values()))
    axis.set(title=metric.replace("_", " "), xlabel="layer")
    if metric != "gradient_cosine":
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def draw(reports: Reports, subtitle: str, path: Path) -> None:
    """A panel for each metric, over the layers."""
    title = "Drift of a network in the epochs after a learning rate decay"
    with figure(path, title, subtitle, len(METRICS), (9.6, 4.0)) as axes:
        for axis, metric in zip(axes, METRICS, strict=True):
            _lines(axis, reports, metric)
        for axis, label in zip(axes, ("relative drift", "cosine", "relative drift"), strict=True):
            axis.set_ylabel(label)
        legend_below(axes[0])


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Compare every arm from every seed, draw and tabulate."""
    reports: Reports = {}
    for arm in DECAYED:
        reports[arm] = [compare(arm, seed, epochs) for seed in range(seeds)]
        on_run()
    subtitle = (
        f"digits, {WINDOW} epochs after epoch {epochs}, 1,297 test images as probe; "
        f"mean of {seeds} seeds ± standard error"
    )
    draw(reports, subtitle, path=folder / "stability.png")
    return tabulate(reports, seeds, epochs)


def main() -> None:
    """Run the study."""
    arguments = parse("examples.stability", __doc__, seeds=32, epochs=5, quick=1, minutes="about 20 seconds")
    present(arguments, study, total=len(DECAYED))


if __name__ == "__main__":
    main()
