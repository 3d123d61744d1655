"""Several runs of bench.gpu side by side: ``python -m bench.gpu.compare A.json B.json ...``, of libraries A, B, ...

Runs are minutes apart, and clocks move: times are compared as multiples of the copy in their own rounds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import tables
from ..tables import Cells, make_table

LEAST_NAME_WIDTH = 30
FOOTNOTE = "GPU us; (ratio of the times to the first run's, each as a multiple of its own run's copy)."
Figures = dict[str, dict[str, Any]]


def figures_of(file: Path) -> Figures:
    """Of every one of ours in a run, by row and name; ValueError where the file is no run's."""
    try:
        return {
            f"{row['name']}: {name}": timed
            for row in json.loads(file.read_text())["rows"]
            for name, timed in row["timed"].items()
            if name.startswith("ours")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Invalid file {file}: {type(error).__name__}: {error}") from error


def cells(name: str, runs: list[Figures]) -> Cells:
    """One line: the times of all runs, and their ratios to the first's."""
    first = runs[0][name]["of_copy"]["median"]
    texts = [f"{runs[0][name]['gpu_us']['median']:.1f}"]
    for run in runs[1:]:
        of = run.get(name)
        texts.append(f"{of['gpu_us']['median']:.1f} ({first / of['of_copy']['median']:.3f})" if of else "")
    return (name, *texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="written by --json; the first is compared with"
    )
    files = parser.parse_args(argv).files
    try:
        runs = [figures_of(file) for file in files]
    except ValueError as error:
        parser.error(str(error))
    console = tables.terminal()
    rows, ends = tables.grouped([cells(name, runs) for name in runs[0]])
    header = ("work", *(file.stem for file in files))
    console.print(make_table(header, rows, console.width, ends=ends, first=LEAST_NAME_WIDTH))
    console.print(FOOTNOTE, style="dim", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
