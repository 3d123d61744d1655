"""Chooses the learning rates of the studies: ``python -m examples.tune``.

By the one-standard-error rule: of a grid the smallest rate whose mean test accuracy, without any trick, lies within one
standard error of the best. The seeds are no study's. The studies state the chosen rates, for on another processor a tie
may fall otherwise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from . import gradient_weight, k_decay, lossgrad, robustness
from .common import Arm, run_all
from .reporting import Report, parse, present
from .study import final_accuracies

FIRST_SEED = 1000
# Study -> grid, what trains at one of its rates.
GRIDS: dict[str, tuple[Sequence[float], Callable[[float], Arm]]] = {
    "gradient_weight, SGD": (gradient_weight.GRIDS["SGD"], lambda lr: gradient_weight.arm("SGD", 0.0, lr=lr)),
    "gradient_weight, Adam": (gradient_weight.GRIDS["Adam"], lambda lr: gradient_weight.arm("Adam", 0.0, lr=lr)),
    "k_decay, peak": (k_decay.PEAKS, lambda peak: k_decay.decayed("polynomial", 1.0, peak)),
    "lossgrad, SGD": (lossgrad.GRID, lossgrad.sgd),
    "robustness": (robustness.LRS, lambda lr: robustness.arm(robustness.PLAIN, robustness.FULL, lr)),
}


def choose(accuracies: dict[float, list[float]]) -> float:
    """The smallest learning rate whose mean lies within one standard error of the highest mean."""
    top = max(accuracies.values(), key=mean)
    least = mean(top) - stdev(top) / len(top) ** 0.5
    return min(lr for lr, values in accuracies.items() if mean(values) >= least)


def study(seeds: int, epochs: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Train at every rate of every grid and tabulate; nothing is drawn."""
    report = Report(f"Learning rates, {epochs} epochs, {seeds} seeds", ("learning rate", "test accuracy (%)", "± std"))
    for name, (grid, make) in GRIDS.items():
        accuracies = {}
        for lr in grid:
            arm = make(lr)
            runs = run_all([arm], range(FIRST_SEED, FIRST_SEED + seeds), epochs, on_run)
            accuracies[lr] = final_accuracies(runs[arm.name])
            report.rows.append((f"{name}: {lr:g}", f"{mean(accuracies[lr]):.2f}", f"{stdev(accuracies[lr]):.2f}"))
        report.verdicts.append(f"{name}: {choose(accuracies):g}")
    return report


def main() -> None:
    """Run the choice."""
    arguments = parse("examples.tune", __doc__, seeds=32, epochs=40, quick=2, minutes="about 2 minutes")
    present(arguments, study, total=sum(len(grid) for grid, _ in GRIDS.values()))


if __name__ == "__main__":
    main()
