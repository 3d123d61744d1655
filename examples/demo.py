"""Trains on handwritten digits with and without a mask, times one step, and draws both: ``make demo``.

Everything it says is computed from this run's numbers.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.candidates import KEEP_PROB, ours, recipe, torch_optim
from bench.report import MOST_OF_OTHERS, OthersShare, machine_facts
from bench.tables import grouped, make_table, terminal
from bench.timing import Effort, Timings, time_candidates
from bench.workloads import RESNET50

from . import figures
from .digits import BATCH, TRAIN_IMAGES
from .reporting import TRACKED_FIGURES, make_parser, parse_with_quick, spread
from .study import MASKED, OPTIMIZERS, VARIANTS, Runs, curve_distance, final_accuracies, run_all, verdict

COMMAND = f"{os.path.relpath(sys.executable)} -m examples.demo"  # as it can be typed, whatever `python` is here
THREADS = 2
BASELINE = "torch fused"
MOST_SPREAD = 1.5  # between the quartiles of a candidate's steps, for its median to mean something
# Name of the candidate -> what tables and figures call it.
STEP_LABELS = {
    "paper recipe": f"paper recipe\n(keep {KEEP_PROB:g})",
    "torch foreach": "torch foreach\n(no mask)",
    BASELINE: "torch fused\n(no mask)",
    "ours": f"ours\n(keep {KEEP_PROB:g})",
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the demo."""
    parser = make_parser(COMMAND, __doc__ or "", "about 2 minutes", "the figures")
    parser.add_argument("--seeds", type=int, default=8, help="runs per variant, 2 or more (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs per run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps per candidate (default: %(default)s)")
    quick = {"seeds": 2, "epochs": 3, "rounds": 3}
    return parse_with_quick(parser, quick, {"seeds": 2, "epochs": 1, "rounds": 1}, argv)


def accuracy_table(all_runs: Runs, width: int) -> Table:
    """Accuracy, loss and distance of every variant, for a terminal of that width."""
    header = ("optimizer: variant", "test accuracy (%), mean ± std", "final train loss, mean",
              f"distance to '{MASKED.name}'")  # fmt: skip
    rows = []
    for name, runs in all_runs.items():
        for variant in VARIANTS:
            curves = runs[variant.name]
            rows.append(
                (
                    f"{name}, lr {OPTIMIZERS[name][1]:g}: {variant.name}",
                    spread(final_accuracies(curves)),
                    f"{mean(run.train_loss[-1] for run in curves):.4f}",
                    f"{curve_distance(curves, runs[MASKED.name]):.3f}",
                )
            )
    shown, ends = grouped(rows)
    table = make_table(header, shown, width, title="Handwritten digits", ends=ends)
    table.caption = "distance: mean over epochs and seeds of |ln(training loss / training loss)|"
    table.caption_justify = "left"
    return table


def step_table(timings: Timings, width: int) -> Table:
    """Step times and their ratios to torch's fused step, for a terminal of that width."""
    header = ("implementation", "ms per step, median", f"ratio to {BASELINE}, median (q1-q3)", "ns per parameter")
    rows = []
    for name, label in STEP_LABELS.items():
        seconds, ratio = timings.step(name).median, timings.ratio(name, BASELINE)
        cells = (f"{1e3 * seconds:.1f}", f"{ratio.median:.2f} ({ratio.q1:.2f}-{ratio.q3:.2f})")
        rows.append((label.replace("\n", " "), *cells, f"{seconds / RESNET50.numel * 1e9:.3f}"))
    title = f"One Adam step, {RESNET50.name}, {RESNET50.numel / 1e6:.1f}M parameters"
    return make_table(header, rows, width, title=title)


def unrest(timings: Timings, share: float) -> str:
    """Why the step times say nothing; empty if they do."""
    if share > MOST_OF_OTHERS:
        return f"others used {share:.0%} of the processor meanwhile"
    spreads = {name: timings.step(name) for name in STEP_LABELS}
    widest = max(spreads, key=lambda name: spreads[name].q3 / spreads[name].q1)
    wide = spreads[widest]
    if wide.q3 > MOST_SPREAD * wide.q1:
        return f"half of the steps of {widest!r} lie further apart than {wide.q1 * 1e3:.0f} and {wide.q3 * 1e3:.0f} ms"
    return ""


def draw(
    all_runs: Runs, timings: Timings, facts: dict[str, str], seeds: int, folder: Path, *, step_times: bool
) -> None:
    """Both figures, or that of the curves alone."""
    folder.mkdir(parents=True, exist_ok=True)
    figures.draw_curves(
        all_runs,
        f"scikit-learn digits, {TRAIN_IMAGES} training images, batches of {BATCH}; "
        f"mean and standard deviation of {seeds} seeds",
        folder / "digits_curves.png",
    )
    if not step_times:
        return
    figures.draw_step_times(
        timings,
        STEP_LABELS,
        BASELINE,
        f"25.6M fp32 parameters in 161 tensors; {facts['threads']} threads, {facts['CPU'].split(',')[0]}; "
        "median and quartiles",
        folder / "step_times.png",
    )


def places(folder: Path, step_times: bool) -> list[str]:
    """Where the figures are, and how to draw the README's."""
    drawn = f"Figures: {folder}/digits_curves.png" + (f", {folder}/step_times.png" if step_times else "")
    return [drawn] if folder == TRACKED_FIGURES else [drawn, f"To draw the README's: {COMMAND} --out {TRACKED_FIGURES}"]


def measure(arguments: argparse.Namespace, console: Console) -> tuple[Runs, Timings, float]:
    """Train, then time, under one progress display; and the others' share of the processor while it was timed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        epochs = len(OPTIMIZERS) * len(VARIANTS) * arguments.seeds * arguments.epochs
        training = progress.add_task("training epochs", total=epochs)
        timing = progress.add_task("timing rounds", total=arguments.rounds)
        torch.set_num_threads(1)  # these layers are too small to share
        all_runs = run_all(arguments.seeds, arguments.epochs, lambda: progress.advance(training))
        torch.set_num_threads(THREADS)
        candidates = [recipe(), torch_optim("Adam", "foreach"), torch_optim("Adam", "fused"), ours("Adam")]
        effort = Effort(allocations=1, rounds=arguments.rounds, warm_up=2, seconds=45)
        others = OthersShare()
        timings = time_candidates(RESNET50, candidates, effort, lambda: progress.advance(timing))
        progress.update(timing, total=len(timings.seconds[BASELINE]))
        return all_runs, timings, others.so_far()


def main() -> None:
    """Run the demo."""
    arguments, console = parse_arguments(), terminal()
    torch.set_num_threads(THREADS)
    facts = machine_facts()
    for key, value in facts.items():
        console.print(f"[bold]{key}:[/] {value}", highlight=False)
    all_runs, timings, share = measure(arguments, console)
    why_not = unrest(timings, share)
    draw(all_runs, timings, facts, arguments.seeds, arguments.out, step_times=not why_not)
    console.print(accuracy_table(all_runs, console.width))
    console.print(step_table(timings, console.width))
    if why_not:
        console.print(f"This machine was too busy for step times, so they are not drawn: {why_not}.", style="bold red")
    for line in places(arguments.out, not why_not):
        console.print(line, highlight=False, soft_wrap=True)
    for name, runs in all_runs.items():
        console.print(verdict(name, runs), highlight=False)


if __name__ == "__main__":
    main()
