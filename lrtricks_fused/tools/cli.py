"""Command line: ``lrtricks verify`` compares steps with the reference, ``lrtricks doctor`` says what runs where."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from time import monotonic

import torch

from .. import __version__
from . import doctor
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


INTERRUPTED = "interrupted"


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: the name is not cpu, cuda or cuda:N, or torch sees no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"Invalid --device {name}: must be cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(
            f"Invalid --device {name}: torch {torch.__version__}, {doctor.torch_build()}, sees no CUDA device"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise ValueError(f"Invalid --device {name}: torch sees {count} CUDA device(s)")
    return torch.device("cuda", index)


def check_output(path: Path) -> None:
    """Raises ValueError unless a report can be written there; one that is there stays as it is."""
    try:
        path.open("a").close()
    except OSError as error:
        raise ValueError(f"Invalid --output {path}: {error.strerror}") from error


def select(checks: list[Check], only: Sequence[str], device: torch.device) -> list[Check]:
    """The checks of the named sections, and first, as always, whether the backend can run; all without names.

    Raises:
        ValueError: a section is not there, or has nothing to run on this device.
    """
    sections = dict.fromkeys(check.section for check in checks if runs_on(device, check))
    for name in only:
        if name not in sections:
            raise ValueError(f"Invalid --only {name}: must, on {device}, be one of {', '.join(sections)}")
    return [check for check in checks if not only or check is BACKEND or check.section in only]


def runs_on(device: torch.device, check: Check) -> bool:
    """Whether the check says anything of that device."""
    return device.type == "cuda" or not check.cuda_only


def facts(target: Target) -> dict[str, str]:
    """What a reader of the report must know about the machine."""
    known = {**doctor.software(), "device": str(target.device), "backend": target.backend}
    if target.device.type == "cuda":
        known["device"] += f", {doctor.gpu(target.device)}"
    if target.interpreted:
        known["backend"] += ", interpreted: smaller tensors, fewer steps and checks"
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


def run(
    checks: Sequence[Check], target: Target, say: Say = lambda check, failure: None, seconds: float = math.inf
) -> Results:
    """Run the checks in order; stop where none after could tell anything, and begin none after so many seconds."""
    results = Results()
    end = monotonic() + seconds
    for check in checks:
        runs = runs_on(target.device, check)
        if runs and not results.stopped and monotonic() >= end:
            results.stopped = f"the {seconds:g} seconds of --seconds are over"
        if results.stopped or not runs:
            results.not_run.append(check)
            continue
        try:
            failure = results.failures[check] = run_check(check, target)
        except KeyboardInterrupt:
            results.stopped = INTERRUPTED
            results.not_run.append(check)
            continue
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
    """The subcommand: 0 if all that ran has passed; 1 if a check failed, time was for none, or it was interrupted."""
    try:
        if arguments.output:
            check_output(arguments.output)
        best = "cuda" if torch.cuda.is_available() else "cpu"
        device = parse_device(best if arguments.device is None else arguments.device)
        target = Target(device, arguments.backend)
        checks = select(all_checks(quick=arguments.quick, interpreted=target.interpreted), arguments.only, device)
    except ValueError as error:
        arguments.parser.error(str(error))
    with progress(sum(runs_on(device, check) for check in checks)) as say:
        results = run(checks, target, say, arguments.seconds)
    text = report(facts(target), results)
    print(text, end="")
    if arguments.output:
        try:
            arguments.output.write_text(text, encoding="utf-8")
        except OSError as error:
            arguments.parser.error(f"Invalid --output {arguments.output}: {error.strerror}")
    nothing = bool(results.stopped) and results.failures.keys() <= {BACKEND}
    return 1 if results.failed or results.stopped == INTERRUPTED or nothing else 0


def diagnose(arguments: argparse.Namespace) -> int:
    """The subcommand: 0 if the native or the Triton backend runs on every device that torch sees, else 1."""
    diagnosis = doctor.diagnose()
    doctor.print_report(diagnosis)
    return 0 if diagnosis.healthy else 1


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    number = float(text)
    if not number > 0:
        raise ValueError
    return number


def make_parser() -> argparse.ArgumentParser:
    """Of all subcommands."""
    parser = argparse.ArgumentParser(prog="lrtricks", description="Tools of lrtricks_fused.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, status: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=status)

    text = "compare this machine's steps with the reference, bit for bit"
    status = "Exit status 0 if all that ran has passed; 1 if a check failed, time was for none, or it was interrupted."
    command = add("verify", text, status)
    command.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)"
    )
    command.add_argument("--backend", default="native", choices=["native", "triton"], help="default: native")
    command.add_argument("--quick", action="store_true", help="a reduced inventory")
    only = "these checks alone, by their name in a report; repeat it for several"
    command.add_argument("--only", action="append", default=[], metavar="SECTION", help=only)
    command.add_argument("--seconds", type=positive, default=math.inf, metavar="N", help="begin no check after so many")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the report there, too")
    command.set_defaults(run=verify, parser=command)
    text = "say which backend runs on this machine's devices, which one each optimizer takes, and why"
    status = "Exit status 0 if the native or the triton backend runs on every device that torch sees, else 1."
    command = add("doctor", text, status)
    command.set_defaults(run=diagnose, parser=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``lrtricks``; returns the exit status, 2 for invalid arguments."""
    arguments = make_parser().parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
