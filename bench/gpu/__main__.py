"""Command line: ``python -m bench.gpu [--budget SECONDS] [--json FILE] [--rows REGEX] [--dry-run]``."""

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lrtricks_fused.tools.cli import check_output, positive

from .. import tables
from ..__main__ import regex
from .budget import Budget
from .candidates import BACKENDS
from .clocks import Sampler
from .measure import DRY, FULL, QUICK, Result, Settings, told
from .report import NOTHING_MEASURED, Report, print_end, print_row, say
from .rows import ROWS, Row, summary
from .worker import Apart, Here, Runner

DESCRIPTION = (
    "Times optimizer steps on a GPU, ours on both backends against torch's own and the paper's recipe. Each of ours is "
    "compared with the reference, bit for bit, before it is timed. Exit status: 0; 1 where ours is missing from a row "
    "that was tried, or nothing was timed; 2 for invalid arguments; 3 for a dry run without faults."
)
LEAST_PATIENCE, PATIENCE = 120.0, 8.0  # for a row: seconds, and times what it is expected to take
OVERTIME = 10.0  # that the last row may take beyond the budget


def make_parser() -> argparse.ArgumentParser:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=DESCRIPTION)
    parser.add_argument("--device", default="cuda", help="cuda (the current one, the default) or cuda:N")
    parser.add_argument("--budget", type=positive, default=math.inf, metavar="SECONDS",
                        help="take the rows that there is time for, the most important first")  # fmt: skip
    parser.add_argument("--rows", type=regex, default="", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=[*BACKENDS], help="of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, written after every row")
    parser.add_argument("--quick", action="store_true", help="few rounds: a smoke test")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--in-process", action="store_true", help="in one process, for a debugger or a profiler")
    parser.add_argument("--dry-run", action="store_true", help="the whole flow on the CPU; nothing is measured")
    parser.add_argument("--list", action="store_true", help="print the rows, and time nothing")
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What the rows are measured by."""
    effort = DRY if arguments.dry_run else QUICK if arguments.quick else FULL
    return Settings(arguments.device, tuple(arguments.backends), effort, not arguments.no_compile, arguments.dry_run)


def select(arguments: argparse.Namespace) -> list[Row]:
    """The rows whose names match, without what they need not have."""
    rows = [row for row in ROWS.values() if re.search(arguments.rows, row.name, re.IGNORECASE)]
    if not rows:
        raise ValueError(f"argument --rows: no row matches {arguments.rows!r}")
    return rows


def likely_seconds(row: Row, settings: Settings) -> float:
    """How long a row takes, as far as can be told before."""
    if not settings.with_compiled:
        row = replace(row, peers=tuple(name for name in row.peers if name != "compiled"))
    return row.likely_seconds


def run_rows(
    rows: list[Row], runner: Runner, settings: Settings, budget: Budget, report: Report, file: Path | None
) -> None:
    """Measure, print and write the rows that there is time for; the report has all of it."""
    console, sampler = tables.terminal(), Sampler(runner.uuid)

    def guess(row: Row) -> float:
        return likely_seconds(row, settings)

    try:
        for row in budget.picks(rows, guess):
            patience = max(LEAST_PATIENCE, PATIENCE * budget.expected(guess(row)))
            result: Result = runner.run(row, min(patience, budget.left + OVERTIME))
            clocks = sampler.during(result.began, result.ended)
            report.add(result, clocks)
            report.write(file)
            print_row(console, result, clocks)
            sys.stdout.flush()
    except Exception as error:  # the process that measures cannot be started any more
        report.error = told(error)
    finally:
        sampler.close()
        runner.close()
    report.left_out |= budget.left_out
    if sampler.why_not:
        say(console, f"\nThe clocks are not known: {sampler.why_not}")
    report.write(file)
    print_end(console, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    budget, settings = Budget(arguments.budget), settings_of(arguments)
    try:
        rows = select(arguments)
        if arguments.list:
            print("\n".join(map(summary, rows)))
            return 0
        if arguments.json:
            check_output(arguments.json)
        if settings.dry_run:
            os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: here, and in the process that measures
            print(NOTHING_MEASURED, flush=True)
        elif not torch.cuda.is_available():
            print("bench.gpu: torch sees no CUDA device; nothing was timed", file=sys.stderr)
            return 1
        runner = (Here if arguments.in_process else Apart)(settings)
    except ValueError as error:
        parser.error(str(error))
    for name, fact in runner.facts.items():
        print(f"- {name}: {fact}", flush=True)
    options = {name: str(value) for name, value in vars(arguments).items()}
    report = Report(runner.facts, options, settings.dry_run)
    run_rows(rows, runner, settings, budget, report, arguments.json)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
