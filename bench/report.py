"""What a benchmark run prints: machine facts, and the rows as a Markdown table or a coloured terminal table."""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from .experiments import Bar, Experiment, traffic_bytes
from .tables import make_table
from .timing import Timings

HEADER = ("work", "ratio, median [q1-q3]", "bar", "", "ns/param", "baseline ns/param", "ours GB/s (of copy)")
TWO_LINES = ("work", "ratio, median\n[q1-q3]", "bar", "ns/param\nbaseline", "GB/s\n(of copy)")  # HEADER's, in pairs
LEAST_WORK_WIDTH = 34  # of a terminal's first column, which is wrapped
MOST_OF_OTHERS = 0.1  # of the processor's time, for figures to be quoted
COPY_TRANSFERS = 3  # read the source, read the target for ownership, write it
FOOTNOTE = (
    "Ratios: interleaved steps, median and quartiles over rounds. GB/s: the least bytes such a step can move; "
    "a copy of as many parameters is timed in the same rounds and counts read, read for ownership and write."
)


@dataclass(frozen=True)
class Row:
    """One line of the table, as text; ``passed`` is None where there is no bar."""

    work: str
    ratio: str
    bar: str
    passed: bool | None
    numerator: str = ""
    denominator: str = ""
    bandwidth: str = ""

    def cells(self) -> tuple[str, ...]:
        """In the order of HEADER."""
        verdict = {True: "pass", False: "FAIL", None: ""}[self.passed]
        return self.work, self.ratio, self.bar, verdict, self.numerator, self.denominator, self.bandwidth


class OthersShare:
    """Share of this machine's processor time that others use, or steal from a virtual machine, since it was made."""

    def __init__(self) -> None:
        self._ticks, self._own = self._read(), self._used()

    @staticmethod
    def _used() -> float:
        """Seconds of this process and of its children that have ended."""
        return sum(os.times()[:4])

    @staticmethod
    def _read() -> list[int]:
        stat = Path("/proc/stat")
        return [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]] if stat.exists() else [0] * 8

    def so_far(self) -> float:
        """From 0 to 1; 0 if unknown."""
        user, nice, system, idle, iowait, irq, softirq, steal = (
            now - before for before, now in zip(self._ticks, self._read(), strict=True)
        )
        busy = user + nice + system + irq + softirq + steal
        own = (self._used() - self._own) * os.sysconf("SC_CLK_TCK")
        return min(max(busy - own, 0.0) / max(busy + idle + iowait, 1), 1.0)


def too_busy(share: float) -> str:
    """What to add to such a share."""
    return ", too much to quote these" if share > MOST_OF_OTHERS else ""


def machine_facts() -> dict[str, str]:
    """What a reader must know to place the figures."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model")]
    name, family, model = (match[1] if match else "" for match in found)
    cpu = f"{name}, family {family}, model {model}" if name and family else platform.machine()
    others = OthersShare()
    time.sleep(1.0)
    share = others.so_far()
    return {
        "CPU": f"{cpu}, {os.cpu_count()} logical cores",
        "threads": str(torch.get_num_threads()),
        "torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
        "native library": torch.ops.lrtricks_fused.cpu_isa(),
        "others' share of the CPU before the run": f"{share:.0%}{too_busy(share)}",
    }


def _limit(limit: float) -> str:
    """With two digits, or as many more as it has."""
    return next(text for digits in (0, 2, 4, 17) if float(text := f"{limit:.{digits}f}") == limit)


def _bar_text(bar: Bar) -> str:
    return "" if bar.limit is None else f"{'>=' if bar.at_least else '<='} {_limit(bar.limit)}"


def timing_row(experiment: Experiment, bar: Bar, timings: Timings) -> Row:
    """The row of one bar from its experiment's timings."""
    numel = experiment.workload.numel
    ratio = timings.ratio(bar.numerator, bar.denominator)
    digits = 1 if ratio.median >= 10 else 3
    nanoseconds = {name: timings.step(name).median / numel * 1e9 for name in (bar.numerator, bar.denominator)}
    timed = {candidate.name: candidate for candidate in experiment.candidates}
    ours = next(name for name in (bar.numerator, bar.denominator) if name.startswith("ours"))
    bandwidth = ""
    if "copy" in timings.seconds:
        speed = traffic_bytes(experiment.workload, experiment.rule, timed[ours]) / nanoseconds[ours]
        copy = COPY_TRANSFERS * experiment.workload.dtype.itemsize * numel / timings.step("copy").median / 1e9
        bandwidth = f"{speed:.0f} ({speed / copy:.0%} of {copy:.0f})"
    return Row(
        bar.work,
        ratio.text(digits),
        _bar_text(bar),
        bar.passes(ratio.median),
        f"{nanoseconds[bar.numerator]:.3f}",
        f"{nanoseconds[bar.denominator]:.3f}",
        bandwidth,
    )


def memory_rows(bar: Bar, extra: dict[str, int]) -> list[Row]:
    """Extra bytes of every candidate; the others show that the measurement sees temporaries."""

    def row(name: str, size: int) -> Row:
        text = f"{size / 2**20:.1f} MiB"
        if name == bar.numerator:
            return Row(f"{bar.work}: {name}", text, "< 1 MiB", bar.limit is not None and size < bar.limit)
        return Row(f"{bar.work}: {name}", text, "", None)

    return [row(name, size) for name, size in extra.items()]


def markdown(facts: dict[str, str], rows: list[Row]) -> str:
    """Facts and table for the README."""
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| " + " | ".join(HEADER) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join([*lines, "", FOOTNOTE])


def _two_lines(row: Row) -> tuple[str | Text, ...]:
    """A row's cells in the order of TWO_LINES."""
    work, ratio, bar, verdict, *figures = row.cells()
    style = {"pass": "green", "FAIL": "bold red"}.get(verdict, "")
    numerator, denominator, bandwidth = figures
    return (
        work.replace(" / ", "\n/ ").replace(": ", ":\n"),
        Text(ratio.replace(" [", "\n["), style),
        Text(f"{bar}\n{verdict}", style),
        f"{numerator}\n{denominator}",
        bandwidth.replace(" (", "\n("),
    )


def print_terminal(console: Console, facts: dict[str, str], rows: list[Row]) -> None:
    """The same for a terminal, two lines or more to a row."""
    for key, value in facts.items():
        console.print(f"[bold]{key}:[/] {value}", highlight=False)
    cells = [_two_lines(row) for row in rows]
    ends = set(range(1, len(rows)))
    console.print(make_table(TWO_LINES, cells, console.width, ends=ends, first=LEAST_WORK_WIDTH))
    console.print(FOOTNOTE, style="dim", highlight=False)
