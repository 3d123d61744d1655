"""A run of bench.gpu as a table in Markdown: ``python -m bench.gpu.markdown FILE``, written by --json."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .candidates import BACKENDS

KEEP_PROBS = ("0.5", "1")
HEADER = ("work", "base", *(f"{backend}, {keep_prob}" for backend in BACKENDS.values() for keep_prob in KEEP_PROBS))
FOOTNOTE = (
    "GPU us of a step, medians; in brackets the ratio to the base, which is torch's fused step, or what is named, and, "
    "after a comma, the share of a copy's bandwidth. 0.5 and 1: keep_prob."
)


def base_of(row: dict[str, Any]) -> str:
    """What ours is compared with: the row's trick by hand after torch's fused step, else that, else the first."""
    return next((name for name in row["timed"] if name.endswith("by hand")), row["baseline"])


def ours_of(row: dict[str, Any], backend: str, keep_prob: str) -> dict[str, Any] | None:
    """Ours, with the row's trick if it has one: the last whose name begins so."""
    start = f"ours, {backend}, keep {keep_prob}"
    found = [timed for name, timed in row["timed"].items() if name == start or name.startswith(f"{start},")]
    return found[-1] if found else None


def cells(row: dict[str, Any]) -> Iterator[str]:
    """One line of the table."""
    name = base_of(row)
    base = row["timed"][name]
    yield row["name"]
    yield f"{base['gpu_us']['median']:.1f}" + ("" if name == "torch fused" else f" ({name})")
    for backend in BACKENDS.values():
        for keep_prob in KEEP_PROBS:
            if ours := ours_of(row, backend, keep_prob):
                ratio = ours["ratio"]["median"] / base["ratio"]["median"]
                yield f"{ours['gpu_us']['median']:.1f} ({ratio:.2f}, {ours['of_copy']['median']:.0%})"
            else:
                yield ""


def lines(run: dict[str, Any]) -> Iterator[str]:
    """The whole table, and what it was measured on."""
    facts = run["facts"]
    yield f"{facts['GPU']}; torch {facts['torch']}; Triton {facts['Triton']}" + "; DRY RUN" * run["dry_run"]
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield f"|---|{'---:|' * (len(HEADER) - 1)}"
    for row in run["rows"]:
        if row["baseline"] in row["timed"]:
            yield f"| {' | '.join(cells(row))} |"
    yield ""
    yield FOOTNOTE


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.markdown", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    file = parser.parse_args(argv).file
    try:
        table = list(lines(json.loads(file.read_text())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"Invalid file {file}: {type(error).__name__}: {error}")
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
