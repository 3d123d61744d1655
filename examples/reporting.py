"""How the studies report: their command line, tables for a terminal or a README, verdicts, and frames of figures."""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .common import Runs
from .figures import STYLE, headline, plt
from .study import Difference, final_accuracies

ERRORS = 2  # a difference is clear beyond so many standard errors of its mean
FIGURES, TRACKED_FIGURES = Path("build/figures"), Path("docs/figures")  # the second are the README's


@dataclass
class Report:
    """A table and the sentences below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    sections: list[int] = field(default_factory=list)  # lengths of the table at which a new section starts
    verdicts: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """For a terminal; the first column is text, the others are numbers."""
        table = Table(title=self.title, header_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for number, row in enumerate(self.rows, start=1):
            table.add_row(*row, end_section=number in self.sections)
        return table

    def markdown(self) -> str:
        """For a README."""
        head = [" | ".join(self.columns), "|".join(["---", *["---:"] * (len(self.columns) - 1)])]
        lines = [f"| {head[0]} |", f"|{head[1]}|", *(f"| {' | '.join(row)} |" for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"- {verdict}" for verdict in self.verdicts)])


def parse(module: str, doc: str, *, seeds: int, epochs: int, length: str = "epochs") -> argparse.Namespace:
    """Command line of a study; ``length`` is what ``--epochs`` counts."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the figure (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=seeds, help="runs per arm (2 or more)")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"{length} per run")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    for name, least in (("seeds", 2), ("epochs", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"Invalid --{name}={getattr(arguments, name)}: must be at least {least}")
    return arguments


def present(
    arguments: argparse.Namespace, study: Callable[[int, int, Path, Callable[[], object]], Report], total: int
) -> None:
    """Run ``study(seeds, epochs, folder, on_run)``, which calls on_run ``total`` times, and print its report."""
    torch.set_num_threads(1)  # these layers are too small to share
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=total)
        report = study(arguments.seeds, arguments.epochs, arguments.out, lambda: progress.advance(task))
    if arguments.markdown:
        print(report.markdown())
        return
    console.print(report.table())
    for verdict in report.verdicts:
        console.print(verdict, highlight=False, markup=False)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def accuracy_and_loss(runs: Runs, name: str) -> tuple[str, str]:
    """An arm's test accuracy, and the geometric mean of its final training loss."""
    losses = [max(run.train_loss[-1], 1e-12) for run in runs[name]]
    return spread(final_accuracies(runs[name])), f"{math.exp(mean(math.log(loss) for loss in losses)):.4f}"


def accuracy_difference(runs: Runs, name: str, other: str) -> Difference:
    """Paired difference of final test accuracies, in points."""
    return Difference.of(final_accuracies(runs[name]), final_accuracies(runs[other]))


def sign(difference: Difference) -> int:
    """1 or -1 where the mean lies more than two standard errors from 0, else 0."""
    if abs(difference.mean) <= ERRORS * difference.standard_error:
        return 0
    return 1 if difference.mean > 0 else -1


def signed(difference: Difference, unit: str = "points") -> str:
    """Mean and standard error in words."""
    return f"{difference.mean:+.2f} ± {difference.standard_error:.2f} {unit}"


def claim(sentence: str, against: dict[str, Difference], unit: str = "points") -> str:
    """Whether a claim shows: it does if every difference is positive by more than two standard errors.

    Args:
        sentence: what is claimed.
        against: what it is compared with -> difference, positive in favour of the claim.
        unit: of the differences.
    """
    signs = {sign(difference) for difference in against.values()}
    outcome = {(1,): "shows", (-1,): "is reversed"}.get(tuple(signs), "does not show")
    numbers = ", ".join(f"{signed(difference, unit)} against {name}" for name, difference in against.items())
    return f'"{sentence}" {outcome} in this run: {numbers} (mean ± standard error; clear beyond {ERRORS}).'


@contextmanager
def figure(
    path: Path, title: str, subtitle: str, columns: int, size: tuple[float, float], rows: int = 1, **options: object
) -> Iterator[list[plt.Axes]]:
    """Axes of a figure in the demo's style, row by row, saved at the end."""
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        yield list(axes.flat)
        headline(drawing, title, subtitle)
        drawing.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.62 / size[1]), w_pad=0.12)
        drawing.savefig(path)
        plt.close(drawing)


def legend_below(axis: plt.Axes) -> None:
    """One legend for all panels, of the lines of one."""
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
