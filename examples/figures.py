"""The two figures of the demo, drawn to be read at the width of a README (about 830 pixels)."""

from pathlib import Path
from typing import Any

import matplotlib
import torch

from bench.timing import Timings

from .study import FULL, HALF, MASKED, Runs

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

# Okabe and Ito's colour-blind-safe palette; the dashes tell the two curves that coincide apart.
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#000000", "#8C8C8C"
LINES: dict[str, dict[str, Any]] = {
    FULL.name: {"color": BLUE, "linestyle": "-", "linewidth": 2.0},
    MASKED.name: {"color": ORANGE, "linestyle": "-", "linewidth": 3.2},
    HALF.name: {"color": BLACK, "linestyle": (0, (4, 3)), "linewidth": 1.4},
}
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "axes.axisbelow": True,
    "figure.dpi": 160,
    "savefig.facecolor": "white",
}


def _draw(axis: plt.Axes, runs: dict[str, list], quantity: str, *, logarithmic: bool) -> None:
    """Mean over seeds as a line, one standard deviation as a band; of the logarithm where the axis is one."""
    for variant, curves in runs.items():
        values = torch.tensor([getattr(run, quantity) for run in curves], dtype=torch.float64)
        values = values.log() if logarithmic else values
        center, spread = values.mean(dim=0), values.std(dim=0)
        low, high = center - spread, center + spread
        if logarithmic:
            center, low, high = center.exp(), low.exp(), high.exp()
        epochs = range(1, len(center) + 1)
        axis.fill_between(epochs, low, high, color=LINES[variant]["color"], alpha=0.15, linewidth=0)
        axis.plot(epochs, center, label=variant, **LINES[variant])


def headline(figure: plt.Figure, title: str, subtitle: str) -> None:
    """Title and subtitle above all axes."""
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=13, fontweight="bold")
    figure.text(0.5, 1 - 0.38 / height, subtitle, ha="center", va="top", fontsize=10, color="#444444")


def draw_curves(all_runs: Runs, subtitle: str, path: Path) -> None:
    """Training loss (top) and test accuracy (bottom) per epoch, one column per optimizer."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(all_runs), figsize=(9.6, 6.6), sharex=True, sharey="row", squeeze=False)
        for (loss_axis, accuracy_axis), (name, runs) in zip(axes.T, all_runs.items(), strict=True):
            _draw(loss_axis, runs, "train_loss", logarithmic=True)
            loss_axis.set(yscale="log", title=name)
            _draw(accuracy_axis, runs, "test_accuracy", logarithmic=False)
            accuracy_axis.set(xlabel="epoch", xlim=(0.5, None), ylim=(0.8, 0.98))
            accuracy_axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            loss_axis.tick_params(labelleft=True)
            accuracy_axis.tick_params(labelleft=True)
        axes[0, 0].set_ylabel("training loss\n(nats, geometric mean)")
        axes[1, 0].set_ylabel("test accuracy")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        headline(figure, "Learning rate dropout on handwritten digits, against both controls", subtitle)
        figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
        figure.tight_layout(rect=(0, 0.05, 1, 0.93))
        figure.savefig(path)
        plt.close(figure)


def _bars(axis: plt.Axes, timings: Timings, labels: dict[str, str], baseline: str) -> None:
    for row, (name, label) in enumerate(labels.items()):
        seconds, ratio = timings.step(name), timings.ratio(name, baseline).median
        value, low, high = (1e3 * x for x in (seconds.median, seconds.q1, seconds.q3))
        color = ORANGE if name == "ours" else GREY
        axis.barh(label, value, color=color, height=0.62)
        axis.errorbar(value, row, xerr=[[value - low], [high - value]], color=BLACK, capsize=3, linewidth=1)
        milliseconds = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
        text = f"{milliseconds} ms ({ratio:.0f}x)" if ratio >= 10 else f"{milliseconds} ms ({ratio:.2f}x)"
        axis.annotate(text, (high, row), xytext=(6, 0), textcoords="offset points", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="time per step (ms)", xlim=(0, 1.75e3 * max(timings.step(name).q3 for name in labels)))
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def draw_step_times(timings: Timings, labels: dict[str, str], baseline: str, subtitle: str, path: Path) -> None:
    """Bars of all candidates (name -> label, the slowest first), and beside them all but the first, rescaled."""
    slow, *fast = labels
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8))
        _bars(left, timings, labels, baseline)
        left.set_title("All")
        _bars(right, timings, {name: labels[name] for name in fast}, baseline)
        right.set_title(f"Without the {slow}, enlarged")
        headline(figure, f"One Adam step over the parameters of ResNet-50 (in brackets: ratio to {baseline})", subtitle)
        figure.tight_layout(rect=(0, 0, 1, 0.88), w_pad=2)
        figure.savefig(path)
        plt.close(figure)
