"""k-decay on MNIST-1D against k = 1 at the same mean learning rate: ``python -m examples.k_decay``.

A larger k keeps the learning rate high for longer. The control that could refute it: k = 1 from a higher peak, so that
its mean over time is the same. The peak is the choice of examples.tune for k = 1.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lrtricks_fused import SGD, CosineKDecayLR, PolynomialKDecayLR
from lrtricks_fused.schedules import constant, cosine_k_decay, polynomial_k_decay

from .common import TRAIN, Arm, Runs, Trainer, run_all
from .figures import BLACK, GREY, ORANGE, plt
from .reporting import (
    Report,
    accuracy_and_loss,
    accuracy_difference,
    claim,
    figure,
    legend_below,
    loss_difference,
    parse,
    present,
)
from .study import final_accuracies

KS = (1.0, 1.5, 2.0, 3.0)
ADVISED = (1.5, 2.0)  # 1 < k <= 2
FAMILIES: dict[str, tuple[Any, Any]] = {
    "polynomial": (PolynomialKDecayLR, polynomial_k_decay),
    "cosine": (CosineKDecayLR, cosine_k_decay),
}
PEAKS, PEAK = (0.05, 0.1, 0.2, 0.4), 0.1
END = 0.01  # final learning rate as a share of the peak, as in the paper
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
CONSTANT = "constant, mean of polynomial k = 1.5"


def mean_shape(family: str, k: float, points: int = 1000) -> float:
    """Time average of the learning rate, as a share of the peak."""
    shape = FAMILIES[family][1](start=1.0, end=END, k=k)
    return mean(shape((i + 0.5) / points) for i in range(points))


def decayed(family: str, k: float, peak: float, name: str | None = None) -> Arm:
    """SGD with k-decay from ``peak`` per batch."""

    def make(params: list[torch.nn.Parameter], steps: int, seed: int) -> Trainer:
        optimizer = SGD(params, lr=peak, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, seed=seed)
        return Trainer(optimizer, FAMILIES[family][0](optimizer, steps, k=k, min_lr=END * peak))

    return Arm(name or arm_name(family, k), make)


def held(lr: float) -> Arm:
    """SGD at a constant learning rate."""

    def make(params: list[torch.nn.Parameter], steps: int, seed: int) -> Trainer:
        return Trainer(SGD(params, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, seed=seed))

    return Arm(CONSTANT, make)


def arm_name(family: str, k: float) -> str:
    """What the arm of a k is called."""
    return f"{family}: k = {k:g}"


def control_name(family: str, k: float) -> str:
    """What the control of a k is called."""
    return f"{family}: k = 1, mean lr of k = {k:g}"


def arms(peak: float = PEAK) -> list[Arm]:
    """For each family every k, then its control."""
    result = [held(peak * mean_shape("polynomial", 1.5))]
    for family in FAMILIES:
        result += [decayed(family, k, peak) for k in KS]
        result += [
            decayed(family, 1.0, peak * mean_shape(family, k) / mean_shape(family, 1.0), control_name(family, k))
            for k in KS[1:]
        ]
    return result


def verdicts(runs: Runs) -> list[str]:
    """One claim for each advised k."""
    return [
        claim(
            f"{family} k-decay with k = {k:g} reaches a higher test accuracy than k = 1",
            {
                "k = 1": accuracy_difference(runs, arm_name(family, k), arm_name(family, 1.0)),
                "k = 1 at the same mean learning rate": accuracy_difference(
                    runs, arm_name(family, k), control_name(family, k)
                ),
            },
        )
        for family in FAMILIES
        for k in ADVISED
    ]


def loss_verdicts(runs: Runs) -> list[str]:
    """The same claims for the training loss."""
    return [
        claim(
            f"{family} k-decay with k = {k:g} reaches a lower training loss than k = 1",
            {
                "k = 1": loss_difference(runs, arm_name(family, k), arm_name(family, 1.0)),
                "k = 1 at the same mean learning rate": loss_difference(
                    runs, arm_name(family, k), control_name(family, k)
                ),
            },
            "in ln(loss)",
        )
        for family in FAMILIES
        for k in ADVISED
    ]


def tabulate(runs: Runs, seeds: int, epochs: int) -> Report:
    """Every arm with its mean learning rate."""
    title = f"k-decay, MNIST-1D, SGD with momentum, peak lr {PEAK:g}, {epochs} epochs, {seeds} seeds"
    report = Report(title, ("schedule", "mean lr", "test accuracy (%), mean ± std", "final training loss"))
    lrs = {CONSTANT: PEAK * mean_shape("polynomial", 1.5)}
    for family in FAMILIES:
        for k in KS:
            lrs[arm_name(family, k)] = lrs[control_name(family, k)] = PEAK * mean_shape(family, k)
    for name in runs:
        report.rows.append((name, f"{lrs[name]:.3f}", *accuracy_and_loss(runs, name)))
    report.verdicts = verdicts(runs) + loss_verdicts(runs)
    return report


def _errorbar(axis: plt.Axes, runs: Runs, names: dict[float, str], shift: float, **style: Any) -> None:
    values = [final_accuracies(runs[name]) for name in names.values()]
    errors = [stdev(v) / len(v) ** 0.5 for v in values]
    axis.errorbar([k + shift for k in names], [mean(v) for v in values], yerr=errors, capsize=3, marker="o", **style)


def draw(runs: Runs, subtitle: str, path: Path) -> None:
    """The shapes, and test accuracy over k with its control."""
    size = (9.6, 3.8)
    with figure(path, "k-decay against k = 1 at the same mean learning rate", subtitle, 3, size) as axes:
        progress = [i / 200 for i in range(201)]
        for k, color in zip(KS, ("#9ECAE1", "#4292C6", "#08519C", "#08306B"), strict=True):
            shape = polynomial_k_decay(start=PEAK, end=END * PEAK, k=k)
            axes[0].plot(progress, [shape(r) for r in progress], color=color, label=f"k = {k:g}")
        axes[0].axhline(
            constant(PEAK * mean_shape("polynomial", 1.5))(0), color=GREY, linestyle=":", label="constant, mean of 1.5"
        )
        axes[0].set(xlabel="progress t / T", ylabel="learning rate", title="polynomial shapes")
        axes[0].legend(frameon=False, fontsize=9)
        axes[1].sharey(axes[2])
        for axis, family in zip(axes[1:], FAMILIES, strict=True):
            _errorbar(axis, runs, {k: arm_name(family, k) for k in KS}, -0.03, color=ORANGE, label="k-decay")
            controls = {k: control_name(family, k) for k in KS[1:]}
            _errorbar(axis, runs, controls, 0.03, color=BLACK, linestyle="--", label="k = 1, same mean lr")
            accuracy = mean(final_accuracies(runs[CONSTANT]))
            axis.axhline(accuracy, color=GREY, linestyle=":", label="constant lr")
            axis.set(xlabel="k", title=family)
        axes[1].set_ylabel("test accuracy (%)")
        legend_below(axes[2])


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Train all arms, draw and tabulate."""
    runs = run_all(arms(), range(seeds), epochs, on_run)
    subtitle = (
        f"MNIST-1D, {TRAIN:,} training signals, {epochs} epochs, peak learning rate {PEAK:g}; "
        f"mean of {seeds} seeds ± standard error"
    )
    draw(runs, subtitle, folder / "k_decay.png")
    return tabulate(runs, seeds, epochs)


def main() -> None:
    """Run the study."""
    arguments = parse("examples.k_decay", __doc__, seeds=48, epochs=40, quick=4, minutes="about 2 minutes")
    present(arguments, study, total=len(arms()))


if __name__ == "__main__":
    main()
