"""Learning rate dropout beside other regularisers, as in the LRD paper's Table II: ``python -m examples.robustness``.

Standard dropout (units kept with probability 0.9), noisy labels (one in ten is another class) and, where the optimizer
has them, gradient centralization and the average of the last ten gradients as momentum; each without a mask, with
keep 0.5, and with half the learning rate, the control that could refute the mask's effect. Accuracy is on clean labels.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lrtricks_fused import SGD

from .common import TRAIN, Arm, Runs, Trainer, run_all
from .figures import BLACK, BLUE, ORANGE
from .reporting import Report, accuracy_and_loss, accuracy_difference, claim, figure, parse, present
from .study import FULL, HALF, MASKED, VARIANTS, Variant, final_accuracies

LRS, LR = (0.03, 0.1, 0.3), 0.03  # the second is the choice of examples.tune: without a mask, plain
MOMENTUM, WEIGHT_DECAY, WINDOW = 0.9, 5e-4, 10


@dataclass(frozen=True)
class Condition:
    """What a comparison happens under.

    Attributes:
        name: what tables and figures call it.
        arm: fields of the arm.
        options: arguments of SGD beyond learning rate and weight decay; without those it has, it is left out.
        lr_factor: an average of gradients is a tenth of what momentum 0.9 sums to.
        together: as the arm's.
    """

    name: str
    arm: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=lambda: {"momentum": MOMENTUM})
    lr_factor: float = 1.0


PLAIN = Condition("plain")
CONDITIONS = [
    PLAIN,
    Condition("standard dropout 0.1", {"dropout": 0.1}),
    Condition("noisy labels 0.1", {"label_noise": 0.1}),
    # The mean over a row must not mix the seeds.
    Condition("gradient centralization", {"together": False}, {"momentum": MOMENTUM, "centralize": True}),
    Condition(f"average momentum {WINDOW}", {}, {"momentum_window": WINDOW}, 1 / (1 - MOMENTUM)),
]


def available() -> list[Condition]:
    """Those conditions for which SGD has the arguments."""
    known = inspect.signature(SGD).parameters
    return [condition for condition in CONDITIONS if set(condition.options) <= set(known)]


def arm(condition: Condition, variant: Variant, lr: float = LR) -> Arm:
    """SGD under a condition, in a variant."""

    def make(params: list[torch.nn.Parameter], steps: int, seed: int) -> Trainer:
        rate = lr * condition.lr_factor * variant.lr_factor
        options = {"keep_prob": variant.keep_prob, "weight_decay": WEIGHT_DECAY, **condition.options}
        return Trainer(SGD(params, lr=rate, seed=seed, **options))

    return Arm(arm_name(condition, variant), make, **condition.arm)


def arm_name(condition: Condition, variant: Variant) -> str:
    """What an arm is called."""
    return f"{condition.name}: {variant.name}"


def tabulate(runs: Runs, seeds: int, epochs: int) -> Report:
    """Every arm, by condition."""
    title = f"Regularisers and a mask, MNIST-1D, SGD with momentum, lr {LR:g}, {epochs} epochs, {seeds} seeds"
    report = Report(title, ("condition: variant", "test accuracy (%), mean ± std", "final training loss"))
    report.rows = [(name, *accuracy_and_loss(runs, name)) for name in runs]
    report.verdicts = verdicts(runs)
    return report


def verdicts(runs: Runs) -> list[str]:
    """What the mask does under every condition, and what every other regulariser does alone."""
    conditions = [condition for condition in CONDITIONS if arm_name(condition, FULL) in runs]
    masks = [
        claim(
            f"{condition.name}: '{MASKED.name}' reaches a higher test accuracy",
            {
                f"'{control.name}'": accuracy_difference(
                    runs, arm_name(condition, MASKED), arm_name(condition, control)
                )
                for control in (FULL, HALF)
            },
        )
        for condition in conditions
    ]
    others = [
        claim(
            f"Without a mask, {condition.name} reaches a higher test accuracy",
            {PLAIN.name: accuracy_difference(runs, arm_name(condition, FULL), arm_name(PLAIN, FULL))},
        )
        for condition in conditions
        if condition is not PLAIN
    ]
    return masks + others


def draw(runs: Runs, subtitle: str, path: Path) -> None:
    """Accuracy of the variants, condition by condition."""
    names = [condition.name for condition in CONDITIONS if arm_name(condition, FULL) in runs]
    with figure(path, "A mask beside other regularisers", subtitle, 1, (9.6, 4.2)) as (axis,):
        colors = zip(VARIANTS, (BLUE, ORANGE, BLACK), strict=True)
        for offset, (variant, color) in enumerate(colors, start=-1):
            values = [final_accuracies(runs[f"{name}: {variant.name}"]) for name in names]
            axis.errorbar(
                [mean(v) for v in values], [row + 0.2 * offset for row in range(len(names))],
                xerr=[stdev(v) / len(v) ** 0.5 for v in values], fmt="o", capsize=3, color=color, label=variant.name,
            )  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("test accuracy (%, mean ± standard error)")
        axis.legend(frameon=False, fontsize=9)


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Train all arms, draw and tabulate."""
    arms = [arm(condition, variant) for condition in available() for variant in VARIANTS]
    runs = run_all(arms, range(seeds), epochs, on_run)
    subtitle = f"MNIST-1D, {TRAIN:,} training signals, SGD with momentum, lr {LR:g}, {epochs} epochs, {seeds} seeds"
    draw(runs, subtitle, folder / "robustness.png")
    return tabulate(runs, seeds, epochs)


def main() -> None:
    """Run the study."""
    arguments = parse("examples.robustness", __doc__, seeds=48, epochs=40, quick=4, minutes="about 3 minutes")
    present(arguments, study, total=len(available()) * len(VARIANTS))


if __name__ == "__main__":
    main()
