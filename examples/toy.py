"""The toy function of the LRD paper (Eq. 9): which starts reach the global minimum: ``python -m examples.toy``.

The paper says that learning rate dropout leaves the local minimum more often. The control that could refute it: no
mask, at half the learning rate, the mean step of keep 0.5. The paper gives no learning rates, starts or numbers of
steps; these are ours. All starts are one parameter, each coordinate with its own keep decisions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.lines import Line2D
from torch import Tensor

from lrtricks_fused import SGD, Adam, RMSprop

from .figures import BLACK, BLUE, GREY, ORANGE, plt
from .reporting import Report, claim, figure, parse, present, spread
from .study import FULL, HALF, MASKED, VARIANTS, Difference

BOX = ((-4.0, 0.0), (-2.0, 3.0))
MINIMA = {"global": (-0.750, 1.416), "local": (-1.504, -0.334)}
NEAR = 0.25  # distance at which a minimum counts as reached: a constant rate hovers around it
SIDE = 24  # starts: one at a random place of each of SIDE x SIDE cells
# Gradients in the corners of the box reach 1e5: plain SGD leaves it at any rate that is of use elsewhere.
OPTIMIZERS: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "Adam": (Adam, 0.05, {}),
    "RMSprop": (RMSprop, 0.02, {}),
    "SGD with momentum": (SGD, 2e-4, {"momentum": 0.9}),
}
SHOWN = "Adam"
DRAWN = 14  # trajectories
ENDS = {"global": "#009E73", "local": "#CC79A7", "elsewhere": GREY}  # colours, other than the variants'
MARKERS = {"global": "*", "local": "X"}


@dataclass(frozen=True)
class Outcome:
    """Where every start of a seed has ended, and the way of some starts of seed 0: (steps + 1, DRAWN, 2)."""

    ends: Tensor
    paths: Tensor

    def share(self, minimum: str) -> float:
        """Percentage of the starts that end near a minimum."""
        return 100 * self.near(minimum).double().mean().item()

    def near(self, minimum: str) -> Tensor:
        """Which starts end near a minimum."""
        return (self.ends - torch.tensor(MINIMA[minimum])).norm(dim=1) < NEAR


Runs = dict[str, dict[str, list[Outcome]]]  # optimizer -> variant -> one outcome per seed


def toy(x: Tensor, y: Tensor) -> Tensor:
    """F = (1.5 - x^2 + xy)^2 + (2.25 - x^2 + xy^2)^2 + (2.625 - x^2 + xy^3)^2."""
    terms = [(c - x**2 + x * y**power) ** 2 for power, c in enumerate((1.5, 2.25, 2.625), start=1)]
    return terms[0] + terms[1] + terms[2]


def slopes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of F."""
    terms = [(2 * (c - x**2 + x * y**n), n) for n, c in enumerate((1.5, 2.25, 2.625), start=1)]
    by_x = [t * (y**n - 2 * x) for t, n in terms]
    by_y = [t * n * x * y ** (n - 1) for t, n in terms]
    return by_x[0] + by_x[1] + by_x[2], by_y[0] + by_y[1] + by_y[2]


def starts(seed: int) -> Tensor:
    """A random point in each cell of a grid over the box, (SIDE^2, 2)."""
    cells = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    places = (cells + torch.rand(cells.shape, generator=torch.Generator().manual_seed(seed))) / SIDE
    low, high = torch.tensor(BOX).T
    return low + (high - low) * places


def descend(optimizer: str, lr_factor: float, keep_prob: float, seeds: int, steps: int) -> list[Outcome]:
    """From all starts of all seeds at once; the sum of the losses has each start's own gradient."""
    kind, lr, options = OPTIMIZERS[optimizer]
    begin = torch.cat([starts(seed) for seed in range(seeds)])
    drawn = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(1))[:DRAWN]
    points = torch.nn.Parameter(begin.clone())
    descent = kind([points], lr=lr * lr_factor, keep_prob=keep_prob, **options)
    paths = [begin[drawn]]
    for _ in range(steps):
        x, y = points.detach().T
        points.grad = torch.stack(slopes(x, y), dim=1)
        descent.step()
        paths.append(points.detach()[drawn])
    return [Outcome(ends, torch.stack(paths)) for ends in points.detach().split(SIDE**2)]


def run_all(seeds: int, steps: int, on_run: Callable[[], object]) -> Runs:
    """Every optimizer in every variant from every seed."""
    runs: Runs = {}
    for name in OPTIMIZERS:
        runs[name] = {}
        for variant in VARIANTS:
            runs[name][variant.name] = descend(name, variant.lr_factor, variant.keep_prob, seeds, steps)
            on_run()
    return runs


def shares(runs: list[Outcome], minimum: str) -> list[float]:
    """Percentage that ends near a minimum, per seed."""
    return [run.share(minimum) for run in runs]


def tabulate(runs: Runs, seeds: int, steps: int) -> Report:
    """Shares of both minima, and of neither: most of these have left the box, for a minimum near (1.67, 0.61)."""
    columns = ("optimizer: variant", "global minimum (%), mean ± std", "local minimum (%)", "elsewhere (%)")
    report = Report(f"Toy function, {SIDE * SIDE} starts, {steps} steps, {seeds} seeds", columns)
    for name, of_optimizer in runs.items():
        for variant, outcomes in of_optimizer.items():
            found = {minimum: shares(outcomes, minimum) for minimum in MINIMA}
            neither = [100 - sum(values) for values in zip(*found.values(), strict=True)]
            cells = [spread(values) for values in (*found.values(), neither)]
            report.rows.append((f"{name}, lr {OPTIMIZERS[name][1]:g}: {variant}", *cells))
        differences = {
            f"'{control.name}'": Difference.of(
                shares(of_optimizer[MASKED.name], "global"), shares(of_optimizer[control.name], "global")
            )
            for control in (FULL, HALF)
        }
        sentence = f"With {name}, '{MASKED.name}' reaches the global minimum from more starts"
        report.verdicts.append(claim(sentence, differences, "% of the starts"))
    return report


def _landscape(axis: plt.Axes) -> None:
    x, y = (torch.linspace(low, high, 201) for low, high in BOX)
    values = toy(*torch.meshgrid(x, y, indexing="xy")).log10()
    axis.contour(x, y, values, levels=16, cmap="Greys", linewidths=0.7)
    axis.set(xlim=BOX[0], ylim=BOX[1], xlabel="x", ylabel="y")
    axis.grid(visible=False)


def _end(place: Tensor) -> str:
    """Which minimum is near, as a key of ENDS."""
    distances = {name: (place - torch.tensor(minimum)).norm().item() for name, minimum in MINIMA.items()}
    return next((name for name, distance in distances.items() if distance < NEAR), "elsewhere")


def _trajectories(axis: plt.Axes, outcome: Outcome, title: str) -> None:
    _landscape(axis)
    for path in outcome.paths.transpose(0, 1):
        axis.plot(*path.T, color=ENDS[_end(path[-1])], linewidth=0.9, alpha=0.9)
        axis.plot(*path[0], "o", color=BLACK, markersize=3)
    for name, marker in MARKERS.items():
        axis.plot(*MINIMA[name], marker, color=BLACK, markersize=10, markeredgecolor="white", linestyle="none")
    axis.set_title(title, fontsize=11)


def _legend_of_trajectories(axis: plt.Axes) -> None:
    """What their colours and marks mean, below the panels on the left."""
    marks = [Line2D([], [], color=BLACK, marker="o", markersize=3, linestyle="none", label="start")]
    for name, color in ENDS.items():
        label = f"ends near the {name} minimum" if name in MARKERS else f"ends {name}"
        mark: dict[str, Any] = {"marker": MARKERS.get(name, ""), "markersize": 10, "markerfacecolor": BLACK}
        marks.append(Line2D([], [], color=color, label=label, markeredgecolor="white", **mark))
    drawing = axis.get_figure(root=True)
    assert drawing is not None
    drawing.legend(handles=marks, loc="outside lower left", ncols=2, frameon=False, fontsize=9)


def _shares(axis: plt.Axes, runs: Runs) -> None:
    """For each optimizer the share of starts that each variant brings to the global minimum."""
    styles = {FULL.name: BLUE, MASKED.name: ORANGE, HALF.name: BLACK}
    for offset, (variant, color) in enumerate(styles.items(), start=-1):
        values = [shares(of_optimizer[variant], "global") for of_optimizer in runs.values()]
        rows = [row + 0.27 * offset for row in range(len(values))]
        errors = [stdev(v) for v in values]
        axis.barh(rows, [mean(v) for v in values], 0.25, xerr=errors, ecolor=GREY, color=color, label=variant)
    axis.set_yticks(range(len(runs)), [name.replace(" with ", "\nwith ") for name in runs])
    axis.invert_yaxis()
    axis.set(xlabel="% of the starts, ± std", xlim=(0, 60))
    axis.set_title("near the global minimum", fontsize=11)
    drawing = axis.get_figure(root=True)
    assert drawing is not None
    drawing.legend(*axis.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize=9)


def draw(runs: Runs, subtitle: str, path: Path) -> None:
    """Contour lines with trajectories, unmasked and masked, and the share of starts that end in the global minimum."""
    title = "Toy function (Eq. 9 of the LRD paper): which minimum is reached"
    with figure(path, title, subtitle, 3, (9.6, 4.3), width_ratios=(1.2, 1.2, 1)) as (left, middle, right):
        for axis, variant in ((left, FULL), (middle, MASKED)):
            _trajectories(axis, runs[SHOWN][variant.name][0], f"{SHOWN}, {variant.name}")
        _legend_of_trajectories(left)
        _shares(right, runs)


def study(seeds: int, steps: int, folder: Path, on_run: Callable[[], object]) -> Report:
    """Descend from all starts, draw and tabulate."""
    runs = run_all(seeds, steps, on_run)
    draw(runs, f"{SIDE * SIDE} starts, {steps} steps, {seeds} seeds; {DRAWN} starts are drawn", folder / "toy.png")
    return tabulate(runs, seeds, steps)


def main() -> None:
    """Run the study."""
    arguments = parse(
        "examples.toy", __doc__, seeds=8, epochs=4000, quick=200, minutes="about 15 seconds", length="steps"
    )
    present(arguments, study, total=len(OPTIMIZERS) * len(VARIANTS))


if __name__ == "__main__":
    main()
