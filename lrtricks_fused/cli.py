"""Command line: ``lrtricks verify`` compares this machine's steps with the reference and prints a report."""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch

from . import __version__, ops
from .verify import BACKEND, Check, Target, all_checks, run_check

Say = Callable[[Check, "str | None"], None]


@dataclass
class Results:
    """Of one run: what was wrong with each check that ran (None: nothing), and which did not run, and why."""

    failures: dict[Check, str | None] = field(default_factory=dict)
    not_run: list[Check] = field(default_factory=list)
    stopped: str = ""

    @property
    def failed(self) -> dict[Check, str]:
        """Checks that failed, with what was wrong."""
        return {check: text for check, text in self.failures.items() if text is not None}


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: the name is not cpu, cuda or cuda:N, or torch sees no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"Invalid --device {name}: must be cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ValueError(f"Invalid --device {name}: torch {torch.__version__}, {built}, sees no CUDA device")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise ValueError(f"Invalid --device {name}: torch sees {count} CUDA device(s)")
    return torch.device("cuda", index)


def driver_version() -> str:
    """The newest CUDA that the driver serves, as torch reports it."""
    lookup = getattr(torch._C, "_cuda_getDriverVersion", None)
    if lookup is None:
        return "none"
    version = lookup()
    return f"{version // 1000}.{version % 1000 // 10}" if version else "none"


def facts(target: Target) -> dict[str, str]:
    """What a reader of the report must know about the machine."""
    native = f"unusable: {ops.load_error}"
    if ops.load_error is None:
        archs = torch.ops.lrtricks_fused.cuda_archs() or "none (built without CUDA)"
        native = f"CPU kernels {torch.ops.lrtricks_fused.cpu_isa()}, CUDA kernels {archs}"
    known = {
        "lrtricks_fused": __version__,
        "native library": native,
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "driver's CUDA": driver_version(),
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "device": str(target.device),
        "backend": target.backend,
    }
    if target.device.type == "cuda":
        properties = torch.cuda.get_device_properties(target.device)
        known["device"] += (
            f", {properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.1f} GiB"
        )
    return known


def device_is_lost(device: torch.device) -> bool:
    """Whether an earlier error (an illegal address, say) has left the device unusable for this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def run(checks: Sequence[Check], target: Target, say: Say = lambda check, failure: None) -> Results:
    """Run the checks in order; stop where none after could tell anything."""
    results = Results()
    for check in checks:
        if results.stopped or (check.cuda_only and target.device.type != "cuda"):
            results.not_run.append(check)
            continue
        failure = results.failures[check] = run_check(check, target)
        say(check, failure)
        if failure is not None and check is BACKEND:
            results.stopped = "the backend cannot run"
        elif failure is not None and device_is_lost(target.device):
            results.stopped = "the device is in an error state; the last failure above caused it"
    return results


@contextmanager
def progress(total: int) -> Iterator[Say]:
    """How a check is told on stderr: rich's bar where it is installed and seen, else a line per section."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        rich = False
    else:
        rich = sys.stderr.isatty()
    if not rich:
        yield _plain_progress(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verify", total=total)

        def say(check: Check, failure: str | None) -> None:
            bar.update(task, advance=1, description=check.section)
            if failure is not None:
                bar.console.print(f"FAILED {check.section}: {check.name}", style="red", markup=False, highlight=False)

        yield say


def _plain_progress(total: int) -> Say:
    done = 0
    section = None

    def say(check: Check, failure: str | None) -> None:
        nonlocal done, section
        if check.section != section:
            section = check.section
            print(f"[{done}/{total}] {section}", file=sys.stderr, flush=True)
        done += 1
        if failure is not None:
            print(f"FAILED {check.section}: {check.name}", file=sys.stderr, flush=True)

    return say


def report(known: dict[str, str], results: Results) -> str:
    """Facts, counts per section, and what was wrong, as plain text."""
    width = max(map(len, known))
    lines = ["lrtricks verify", *(f"  {key:{width}}  {value}" for key, value in known.items()), ""]
    failed = results.failed
    for section, group in groupby(results.failures, key=lambda check: check.section):
        checks = list(group)
        wrong = sum(check in failed for check in checks)
        lines.append(f"  {section}: {len(checks) - wrong} passed" + (f", {wrong} FAILED" if wrong else ""))
    for section, group in groupby(results.not_run, key=lambda check: check.section):
        lines.append(f"  {section}: {len(list(group))} not run" + ("" if results.stopped else " (CUDA only)"))
    for check, text in failed.items():
        lines += ["", f"FAILED {check.section}: {check.name}", *(f"  {line}" for line in text.splitlines())]
    if results.stopped:
        lines += ["", f"Stopped: {results.stopped}."]
    passed = len(results.failures) - len(failed)
    lines += ["", f"{passed} passed, {len(failed)} failed, {len(results.not_run)} not run"]
    return "\n".join(lines) + "\n"


def verify(arguments: argparse.Namespace) -> int:
    """The subcommand: 0 if every check that ran passed, else 1."""
    target = Target(arguments.device, arguments.backend)
    checks = all_checks(quick=arguments.quick)
    runnable = [check for check in checks if target.device.type == "cuda" or not check.cuda_only]
    with progress(len(runnable)) as say:
        results = run(checks, target, say)
    text = report(facts(target), results)
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    return 1 if results.failed else 0


def make_parser() -> argparse.ArgumentParser:
    """Of all subcommands."""
    parser = argparse.ArgumentParser(prog="lrtricks", description="Tools of lrtricks_fused.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("verify", help="compare this machine's steps with the reference, bit for bit")
    command.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)"
    )
    command.add_argument("--backend", default="native", choices=["native", "triton"], help="default: native")
    command.add_argument("--quick", action="store_true", help="a reduced inventory")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the report there, too")
    command.set_defaults(run=verify, parser=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``lrtricks``; returns the exit status, 2 for invalid arguments."""
    arguments = make_parser().parse_args(argv)
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        arguments.device = parse_device(name)
    except ValueError as error:
        arguments.parser.error(str(error))
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
