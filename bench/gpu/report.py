"""What a run of bench.gpu prints and writes: a table per row, and one JSON file of all, renewed after every row."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ..tables import Cells, make_table
from ..timing import Spread
from .clocks import Clocks
from .measure import COPY, Result, Timed

SCHEMA = 1
HEADER = ("candidate", "GPU us", "ratio [q1-q3]", "host us", "GB/s (of copy)")
LEAST_NAME_WIDTH = 24  # of the first column, which is wrapped
FOOTNOTE = (
    "Medians over rounds, in which candidates are interleaved in rotating order; ±: half the distance of quartiles. "
    "GPU: by events, the L2 cache filled with other data before each step, which is enqueued while the GPU sleeps "
    "(beyond about 1,000 launches the GPU still waits for the host). Ratio: to the first candidate, round by round. "
    "Host: of a call on an idle GPU. GB/s: the least bytes that such a step can move; (of copy): of a copy's speed in "
    "the same rounds that moves as many bytes, 2 GiB at most, read and written."
)
NOTHING_MEASURED = "DRY RUN: on the CPU, with tiny tensors and a stub for a clock. NOTHING WAS MEASURED."


@dataclass
class Report:
    """Of a whole run, as JSON has it."""

    facts: dict[str, str]
    options: dict[str, Any]
    dry_run: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # rows by name, and why
    missing: dict[str, str] = field(default_factory=dict)  # of ours, in rows that were tried
    error: str = ""  # that ended the run

    def add(self, result: Result, clocks: Clocks | None) -> None:
        """Enter a row."""
        if result.left_out:
            self.left_out[result.name] = result.left_out
            return
        self.missing |= {f"{result.name}: {name}": reason for name, reason in result.missing.items()}
        self.rows.append(as_json(result, clocks))

    @property
    def exit_code(self) -> int:
        """1 where ours is missing, nothing was timed or the run broke off; a dry run without such faults tells 3."""
        timed = any(row["timed"] for row in self.rows)
        return 1 if self.missing or self.error or not timed else 3 if self.dry_run else 0

    def write(self, file: Path | None) -> None:
        """Replaces the file, in one step: a run that is killed leaves the rows before."""
        if file is None:
            return
        fresh = file.with_name(f"{file.name}.tmp")
        fresh.write_text(json.dumps({"schema": SCHEMA, "exit_code": self.exit_code, **asdict(self)}, indent=1) + "\n")
        fresh.replace(file)


def _microseconds(spread: Spread) -> dict[str, float]:
    return {name: round(seconds * 1e6, 3) for name, seconds in asdict(spread).items()}


def _shares(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else {name: round(value, 4) for name, value in asdict(spread).items()}


def as_json(result: Result, clocks: Clocks | None) -> dict[str, Any]:
    """A row as JSON has it: times in microseconds, speeds in GB/s, shares and ratios as numbers around 1."""
    timed = {
        name: {
            "gpu_us": _microseconds(of.device),
            "host_us": _microseconds(of.host),
            "ratio": _shares(of.ratio),
            "bytes": of.moved,
            "gb_per_s": round(of.bandwidth / 1e9, 2),
            "of_copy": _shares(of.of_copy),
            "samples_us": [round(seconds * 1e6, 2) for seconds in of.samples],
        }
        for name, of in result.timed.items()
    }
    return {
        "name": result.name,
        "baseline": result.baseline,
        "timed": timed,
        "missing": result.missing,
        "failed_peers": result.failed_peers,
        "clocks": asdict(clocks) if clocks else None,
    }


def _cells(name: str, of: Timed) -> Cells:
    ratio, of_copy = "", ""
    if name != COPY:
        ratio = f"{of.ratio.median:.3f} [{of.ratio.q1:.3f}-{of.ratio.q3:.3f}]" if of.ratio else ""
        of_copy = f" ({of.of_copy.median:.0%})"
    spread = (of.device.q3 - of.device.q1) / 2 / of.device.median
    return (
        name,
        f"{of.device.median * 1e6:.1f} ±{spread:.1%}",
        ratio,
        f"{of.host.median * 1e6:.1f}",
        f"{of.bandwidth / 1e9:.0f}{of_copy}",
    )


def say(console: Console, text: str, style: str = "") -> None:
    """A line, which a log keeps whole."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_row(console: Console, result: Result, clocks: Clocks | None) -> None:
    """A row's table, what is missing from it, and the clocks."""
    say(console, f"\n{result.name}", "bold")
    if result.left_out:
        say(console, f"left out: {result.left_out}")
    if result.timed:
        rows = [_cells(name, of) for name, of in result.timed.items()]
        console.print(make_table(HEADER, rows, console.width, first=LEAST_NAME_WIDTH))
    for name, reason in result.missing.items():
        say(console, f"MISSING {name}: {reason}", "bold red")
    for name, reason in result.failed_peers.items():
        say(console, f"{name} did not run: {reason}")
    if clocks:
        say(console, f"clocks: {clocks}")


def print_end(console: Console, report: Report) -> None:
    """What the figures mean, and all that was left out or is missing."""
    console.print(f"\n{FOOTNOTE}", style="dim", highlight=False, markup=False)
    for title, reasons in (("Left out", report.left_out), ("MISSING", report.missing)):
        if reasons:
            say(console, f"\n{title}:", "bold")
        for name, reason in reasons.items():
            say(console, f"  {name}: {reason}")
    if report.error:
        say(console, f"\nBroken off: {report.error}", "bold red")
    if report.dry_run:
        say(console, f"\n{NOTHING_MEASURED}", "bold")
