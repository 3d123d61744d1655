"""A schedule on the gradient, against the same on the learning rate: ``python -m examples.gradient_weight``.

The control is the same schedule, factor by factor, on the learning rate. With SGD and no weight decay the two differ by
the momentum's lag only; with weight decay, which the weight does not scale, also by that. Adam is scale-free: a
constant weight changes nothing, and a schedule acts only because the average of squared gradients lags behind it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from lrtricks_fused import SGD, Adam, GradientWeight
from lrtricks_fused.schedules import late, linear, random_gradient

from .common import TRAIN, Arm, Run, Runs, Trainer, run_all
from .figures import BLACK, GREY, ORANGE, plt
from .reporting import (
    Report,
    accuracy_and_loss,
    accuracy_difference,
    claim,
    figure,
    legend_below,
    parse,
    present,
)
from .study import ERRORS, curve_distance

GRIDS = {"SGD": (0.03, 0.1, 0.3), "Adam": (1e-3, 3e-3, 1e-2)}  # learning rates of which examples.tune chose
# Name -> class, the learning rate, further arguments.
OPTIMIZERS: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "SGD": (SGD, 0.03, {"momentum": 0.9}),
    "Adam": (Adam, 1e-2, {}),
}
DECAYS = (0.0, 5e-3)
SCHEDULES: dict[str, Any] = {"linear 2 to 0": linear(start=2, end=0), "late": late(), "random": random_gradient()}
PLAIN = "none"
GRADIENT, RATE = "gradient", "lr"


def as_factor(schedule: Any, steps: int) -> Callable[[int], float]:
    """The factor of a schedule at the step t = 0, 1, ..., as GradientWeight takes it."""
    if hasattr(schedule, "at_step"):
        return lambda t: schedule.at_step(t + 1)
    return lambda t: schedule(min(t / steps, 1.0))


def arm(
    optimizer: str, decay: float, schedule: str | None = None, target: str = GRADIENT, lr: float | None = None
) -> Arm:
    """An optimizer with a schedule on its gradient or on its learning rate; ``lr`` in place of its own."""
    kind, chosen, options = OPTIMIZERS[optimizer]

    def make(params: list[torch.nn.Parameter], steps: int, seed: int) -> Trainer:
        built = kind(params, lr=lr or chosen, weight_decay=decay, seed=seed, **options)
        if schedule is None:
            return Trainer(built)
        if target == GRADIENT:
            return Trainer(built, GradientWeight(built, SCHEDULES[schedule], steps))
        return Trainer(built, LambdaLR(built, as_factor(SCHEDULES[schedule], steps)))

    return Arm(arm_name(optimizer, decay, schedule, target), make)


def arm_name(optimizer: str, decay: float, schedule: str | None = None, target: str = GRADIENT) -> str:
    """What an arm is called."""
    what = f"{schedule} on {target}" if schedule else PLAIN
    return f"{optimizer}, weight decay {decay:g}: {what}"


def arms() -> list[Arm]:
    """Each optimizer, with and without weight decay: no schedule, then each on the gradient and on the rate."""
    return [
        arm(optimizer, decay, schedule, target)
        for optimizer in OPTIMIZERS
        for decay in DECAYS
        for schedule, target in [(None, GRADIENT), *((s, t) for s in SCHEDULES for t in (GRADIENT, RATE))]
    ]


def distance(runs: list[Run], others: list[Run]) -> float:
    """curve_distance, infinite where a run diverged."""
    losses = [loss for run in (*runs, *others) for loss in run.train_loss]
    return curve_distance(runs, others) if all(0 < loss < math.inf for loss in losses) else math.inf


def tabulate(runs: Runs, seeds: int, epochs: int) -> Report:
    """Every arm; how far a weighted gradient runs from the same schedule on the rate and from none."""
    columns = ("arm", "test accuracy (%), mean ± std", "final training loss", "distance to same on lr",
               "distance to none")  # fmt: skip
    rates = ", ".join(f"{name} lr {lr:g}" for name, (_, lr, _) in OPTIMIZERS.items())
    report = Report(f"Gradient weight, MNIST-1D, {rates}, {epochs} epochs, {seeds} seeds", columns)
    for optimizer in OPTIMIZERS:
        for decay in DECAYS:
            plain = arm_name(optimizer, decay)
            report.rows.append((plain, *accuracy_and_loss(runs, plain), "", "0"))
            for schedule in SCHEDULES:
                names = {target: arm_name(optimizer, decay, schedule, target) for target in (GRADIENT, RATE)}
                to_rate = distance(runs[names[GRADIENT]], runs[names[RATE]])
                for target, name in names.items():
                    to_plain = f"{distance(runs[name], runs[plain]):.3f}"
                    cells = accuracy_and_loss(runs, name)
                    report.rows.append((name, *cells, f"{to_rate:.3f}" if target == GRADIENT else "", to_plain))
    report.verdicts = verdicts(runs)
    return report


def verdicts(runs: Runs) -> list[str]:
    """A claim for each schedule on the gradient, and for both optimizers how close it comes to the rate."""
    result = []
    for optimizer in OPTIMIZERS:
        for decay in DECAYS:
            for schedule in SCHEDULES:
                name = arm_name(optimizer, decay, schedule)
                against = {"none": arm_name(optimizer, decay)}
                against["the same on the learning rate"] = arm_name(optimizer, decay, schedule, RATE)
                differences = {label: accuracy_difference(runs, name, other) for label, other in against.items()}
                result.append(claim(f"{name} reaches a higher test accuracy", differences))
    return [*result, *(acts_like_rate(optimizer, runs) for optimizer in OPTIMIZERS)]


def acts_like_rate(optimizer: str, runs: Runs) -> str:
    """Whether linear weights without weight decay train like linear rates or like no schedule at all."""
    schedule = next(iter(SCHEDULES))
    weighted = runs[arm_name(optimizer, 0.0, schedule)]
    to_rate = distance(weighted, runs[arm_name(optimizer, 0.0, schedule, RATE)])
    to_plain = distance(weighted, runs[arm_name(optimizer, 0.0)])
    like = "the same on the learning rate" if to_rate < to_plain else "no schedule"
    return (
        f"{optimizer} without weight decay: '{schedule}' on the gradient trains more like {like}: its training loss is "
        f"a factor of {math.exp(to_rate):.2f} from the learning rate's, {math.exp(to_plain):.2f} from none's "
        "(geometric mean over epochs)."
    )


def _panel(axis: plt.Axes, runs: Runs, optimizer: str, decay: float) -> None:
    plain = arm_name(optimizer, decay)
    for offset, target, color in ((-0.12, GRADIENT, ORANGE), (0.12, RATE, BLACK)):
        found = [accuracy_difference(runs, arm_name(optimizer, decay, s, target), plain) for s in SCHEDULES]
        axis.errorbar(
            [difference.mean for difference in found],
            [row + offset for row in range(len(found))],
            xerr=[ERRORS * difference.standard_error for difference in found],
            fmt="o", capsize=3, color=color, label=f"on the {'gradient' if target == GRADIENT else 'learning rate'}",
        )  # fmt: skip
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(range(len(SCHEDULES)), SCHEDULES)
    accuracy = 100 * mean(run.test_accuracy[-1] for run in runs[plain])
    axis.set_title(f"{optimizer}, weight decay {decay:g} (none: {accuracy:.1f} %)", fontsize=11)


def draw(runs: Runs, subtitle: str, path: Path) -> None:
    """Gain in test accuracy over no schedule, a panel for each optimizer and weight decay."""
    title = "A schedule on the gradient, and the same on the learning rate"
    with figure(path, title, subtitle, 2, (9.6, 5.4), rows=len(OPTIMIZERS), sharey=True) as axes:
        pairs = [(optimizer, decay) for optimizer in OPTIMIZERS for decay in DECAYS]
        for axis, (optimizer, decay) in zip(axes, pairs, strict=True):
            _panel(axis, runs, optimizer, decay)
        for axis in axes[2:]:
            axis.set_xlabel(f"gain in test accuracy (points, ± {ERRORS} standard errors)")
        axes[0].invert_yaxis()  # of all, they share it
        legend_below(axes[0])


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Train all arms, draw and tabulate."""
    runs = run_all(arms(), range(seeds), epochs, on_run)
    draw(runs, f"MNIST-1D, {TRAIN:,} training signals, {epochs} epochs, {seeds} seeds", folder / "gradient_weight.png")
    return tabulate(runs, seeds, epochs)


def main() -> None:
    """Run the study."""
    arguments = parse("examples.gradient_weight", __doc__, seeds=48, epochs=40, quick=4, minutes="about 4 minutes")
    present(arguments, study, total=len(arms()))


if __name__ == "__main__":
    main()
