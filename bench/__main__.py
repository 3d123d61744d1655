"""Prints the table of speed and memory bars: ``python -m bench [--markdown] [--quick] [--rows REGEX] [--compile]``.

Ratios above a bar do not change the exit code: a benchmark informs, tests decide. With ``--check`` those that are worse
than the known ones of the same processor do.
"""

import argparse
import re
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lrtricks_fused.step.native import load_error

from . import candidates, memory, report
from .experiments import MEMORY_BAR, Experiment, all_experiments, select
from .known import KNOWN, Ratios, load, record, worse
from .tables import terminal
from .timing import Effort, time_candidates
from .workloads import SMALL

DESCRIPTION = (
    "Prints the table of speed and memory bars: some minutes, with --quick one or two. Ratios above a bar do not "
    "change the exit code; with --check those do that are worse than the known ones of this processor."
)
MOST_THREADS = 1024
FULL, QUICK = Effort(), Effort(allocations=1, rounds=7)


def regex(text: str) -> str:
    """A regular expression, for argparse."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"invalid regular expression {text!r}: {error}") from error
    return text


def thread_count(text: str) -> int:
    """From 1 to 1,024, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"invalid number {text!r}: must be from 1 to {MOST_THREADS}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=DESCRIPTION)
    parser.add_argument("--markdown", action="store_true", help="print Markdown for the README")
    parser.add_argument("--quick", action="store_true", help="few rounds, one allocation: a smoke test")
    parser.add_argument(
        "--rows", type=regex, default="", metavar="REGEX", help="only rows whose text matches, ignoring case"
    )
    parser.add_argument("--compile", action="store_true", help="add torch.compile of the paper's recipe (slow)")
    parser.add_argument("--check", action="store_true", help=f"compare with {KNOWN.name}; exit with 1 if one is worse")
    parser.add_argument("--record", action="store_true", help=f"enter the ratios into {KNOWN.name}")
    parser.add_argument("--threads", type=thread_count, default=2, help="threads of torch (default 2)")
    return parser


def timed_rows(experiment: Experiment, effort: Effort, progress: Progress, ratios: Ratios) -> list[report.Row]:
    """Run one experiment and free its memory; its ratios are entered."""
    task = progress.add_task(f"{experiment.workload.name}, {experiment.rule}", total=effort.allocations * effort.rounds)
    # A copy of parameters that fit into a cache says nothing about memory.
    with_copy = () if experiment.workload in SMALL else (candidates.copy(),)
    timings = time_candidates(
        experiment.workload, [*experiment.candidates, *with_copy], effort, lambda: progress.advance(task)
    )
    progress.remove_task(task)
    ratios.update({bar.work: timings.ratio(bar.numerator, bar.denominator) for bar in experiment.bars})
    return [report.timing_row(experiment, bar, timings) for bar in experiment.bars]


def memory_rows(progress: Progress) -> list[report.Row]:
    """Measure the memory of every candidate, each in a process of its own."""
    task = progress.add_task("memory", total=len(memory.CANDIDATES))
    extra = {}
    for name in memory.CANDIDATES:
        extra[name] = memory.extra_bytes(name)
        progress.advance(task)
    return report.memory_rows(MEMORY_BAR, extra)


def compare(console: Console, processor: str, known: Ratios, now: Ratios, at_least: frozenset[str]) -> int:
    """Say which of the ratios are worse than the known ones; the exit status."""
    found = worse(known, now, at_least)
    for row in found:
        console.print(f"worse: {row}", style="bold red", highlight=False, soft_wrap=True)
    compared = len(known.keys() & now.keys())
    console.print(f"{compared} of {len(now)} ratios are known for {processor}; {len(found)} are worse", soft_wrap=True)
    return int(bool(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected rows and print them; the exit status, and exit with 2 for invalid arguments."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    experiments = select(all_experiments(arguments.compile, arguments.threads), arguments.rows)
    with_memory = re.search(arguments.rows, MEMORY_BAR.work, re.IGNORECASE)
    if not experiments and not with_memory:
        parser.error(f"argument --rows: no row matches {arguments.rows!r}")
    torch.set_num_threads(arguments.threads)
    if load_error:
        parser.exit(1, f"{parser.prog}: {load_error}\n")
    try:
        facts, effort = report.machine_facts(), QUICK if arguments.quick else FULL
        processor = f"{facts['CPU']}, {facts['threads']} threads"
        known = load(processor)
    except (RuntimeError, ValueError) as error:  # of an instruction set that is none, and of a file that cannot be read
        parser.error(str(error).partition("\n")[0])
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    rows, others = [], report.OthersShare()
    ratios: Ratios = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for experiment in experiments:
            rows += timed_rows(experiment, effort, progress, ratios)
        if with_memory:
            rows += memory_rows(progress)
    share = others.so_far()
    facts["others' share of the CPU during the run"] = f"{share:.0%}{report.too_busy(share)}"
    if arguments.markdown:
        print(report.markdown(facts, rows))
    else:
        report.print_terminal(terminal(), facts, rows)
    at_least = frozenset(bar.work for experiment in experiments for bar in experiment.bars if bar.at_least)
    status = compare(terminal(), processor, known, ratios, at_least) if arguments.check else 0
    if not arguments.record:
        return status
    if report.too_busy(share):
        terminal().print("not recorded: others had too much of the processor", style="bold red", soft_wrap=True)
        return 1
    record(processor, ratios)
    return status


if __name__ == "__main__":
    sys.exit(main())
