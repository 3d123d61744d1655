"""How the studies report: their command line, tables for a terminal or a README, verdicts, and frames of figures."""

import argparse
import io
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.tables import LEAST_WIDTH, grouped, make_table, terminal

from .command import folder
from .common import Runs
from .figures import STYLE, headline, plt
from .study import CLEAR, Difference, final_accuracies, outcome

FIGURES, TRACKED_FIGURES = Path("build/figures"), Path("docs/figures")  # the second are the README's


@dataclass
class Report:
    """A table and the sentences below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)  # named "group: item" where several belong together
    verdicts: list[str] = field(default_factory=list)

    def table(self, width: int = LEAST_WIDTH) -> Table:
        """For a terminal; the first column is text, the others are numbers."""
        rows, ends = grouped(self.rows)
        return make_table(self.columns, rows, width, title=self.title, ends=ends)

    def markdown(self) -> str:
        """For a README."""
        head = [" | ".join(self.columns), "|".join(["---", *["---:"] * (len(self.columns) - 1)])]
        lines = [f"| {head[0]} |", f"|{head[1]}|", *(f"| {' | '.join(row)} |" for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"- {verdict}" for verdict in self.verdicts)])


def make_parser(prog: str, doc: str, minutes: str, out: str) -> argparse.ArgumentParser:
    """What all command lines of examples/ share.

    Args:
        prog: the command.
        doc: of the module, the description.
        minutes: how long a run takes.
        out: what ``--out`` holds.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a locale that has no ±: better a ? than a result that is lost
        sys.stdout.reconfigure(errors="replace")
    text = f"{doc.replace('``', '')}\nA run takes {minutes} on one core, with --quick some seconds."
    paragraphs = [textwrap.fill(" ".join(part.split()), LEAST_WIDTH - 2) for part in text.split("\n\n")]
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description="\n\n".join(paragraphs), formatter_class=layout)
    parser.add_argument(
        "--quick", action="store_true", help="few and short runs: to see that it works, not to conclude"
    )
    parser.add_argument("--out", type=folder, default=FIGURES, help=f"folder of {out} (default: %(default)s)")
    return parser


def parse_with_quick(
    parser: argparse.ArgumentParser, quick: dict[str, int], least: dict[str, int], argv: Sequence[str] | None
) -> argparse.Namespace:
    """Arguments whose defaults ``--quick`` replaces; an error for those below ``least``."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(**quick)
    arguments = parser.parse_args(argv)
    for name, value in least.items():
        if getattr(arguments, name) < value:
            parser.error(f"Invalid --{name}={getattr(arguments, name)}: must be at least {value}")
    return arguments


def parse(
    module: str, doc: str | None, *, seeds: int, epochs: int, quick: int, minutes: str, length: str = "epochs",
    argv: Sequence[str] | None = None
) -> argparse.Namespace:  # fmt: skip
    """Command line of a study.

    Args:
        module: which is run.
        doc: its documentation.
        seeds: default of ``--seeds``.
        epochs: default of ``--epochs``.
        quick: epochs with ``--quick``, of two seeds.
        minutes: how long a run takes.
        length: what ``--epochs`` counts.
        argv: the arguments; None: those of this process.
    """
    parser = make_parser(f"python -m {module}", doc or "", minutes, "the figure")
    parser.add_argument("--seeds", type=int, default=seeds, help="runs per arm, 2 or more (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"{length} per run (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parse_with_quick(parser, {"seeds": 2, "epochs": quick}, {"seeds": 2, "epochs": 1}, argv)


def present(
    arguments: argparse.Namespace, study: Callable[[int, int, Path, Callable[[], object]], Report], total: int
) -> None:
    """Run ``study(seeds, epochs, folder, on_run)``, which calls on_run ``total`` times, and print its report."""
    torch.set_num_threads(1)  # these layers are too small to share
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = terminal()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=total)
        report = study(arguments.seeds, arguments.epochs, arguments.out, lambda: progress.advance(task))
    if arguments.markdown:
        print(report.markdown())
        return
    console.print(report.table(console.width))
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


def loss_difference(runs: Runs, name: str, other: str) -> Difference:
    """Paired difference of ln(final training loss), positive where the first is lower."""
    return Difference.of(*([math.log(max(run.train_loss[-1], 1e-12)) for run in runs[arm]] for arm in (other, name)))


def signed(difference: Difference, unit: str = "points") -> str:
    """Mean and standard error in words."""
    return f"{difference.mean:+.2f} ± {difference.standard_error:.2f} {unit}"


def claim(sentence: str, against: dict[str, Difference], unit: str = "points") -> str:
    """Whether a claim shows, is reversed, or is too close to call: see study.CLEAR.

    Args:
        sentence: what is claimed.
        against: what it is compared with -> difference, positive in favour of the claim.
        unit: of the differences.
    """
    numbers = ", ".join(f"{signed(difference, unit)} against {name}" for name, difference in against.items())
    came = outcome(against.values())
    return f'"{sentence}" {came} in this run: {numbers} (mean ± standard error; clear beyond {CLEAR}).'


@contextmanager
def figure(
    path: Path, title: str, subtitle: str, columns: int, size: tuple[float, float], rows: int = 1, **options: Any
) -> Iterator[list[plt.Axes]]:
    """Axes of a figure in the demo's style, row by row, saved at the end."""
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        yield list(axes.flat)
        headline(drawing, title, subtitle)
        engine = drawing.get_layout_engine()
        assert engine is not None
        engine.set(rect=(0, 0, 1, 1 - 0.62 / size[1]), w_pad=0.12)
        drawing.savefig(path)
        plt.close(drawing)


def legend_below(axis: plt.Axes) -> None:
    """One legend for all panels, of the lines of one."""
    handles, labels = axis.get_legend_handles_labels()
    drawing = axis.get_figure(root=True)
    assert drawing is not None
    drawing.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
