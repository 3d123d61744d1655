"""Ratios of earlier runs, by processor, and whether those of a new run are worse: ``python -m bench --check``."""

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from .timing import Spread

KNOWN = Path(__file__).with_name("ratios.json")
# Quartiles say how a run varies within itself; from one run to the next a ratio moved by up to so much more (speed.md).
BETWEEN_RUNS = 0.04
Ratios = dict[str, Spread]


@dataclass(frozen=True)
class Worse:
    """A row whose ratio has left what both runs' own noise explains."""

    work: str
    known: Spread
    now: Spread

    def __str__(self) -> str:
        """One line of a report."""
        return f"{self.work}: {self.now.median:.3f}, was {self.known.text()}"


def _everything(file: Path) -> dict[str, dict[str, list[float]]]:
    return json.loads(file.read_text()) if file.exists() else {}


def load(processor: str, file: Path = KNOWN) -> Ratios:
    """The known ratios of a processor; none if it has not been seen."""
    return {work: Spread(*values) for work, values in _everything(file).get(processor, {}).items()}


def record(processor: str, ratios: Ratios, file: Path = KNOWN) -> None:
    """Enter or replace the rows of a processor; the others stay."""
    everything = _everything(file)
    own = {work: [round(value, 3) for value in (of.median, of.q1, of.q3)] for work, of in ratios.items()}
    everything[processor] = {**everything.get(processor, {}), **own}
    file.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")


def worse(known: Ratios, now: Ratios, at_least: AbstractSet[str] = frozenset()) -> list[Worse]:
    """The rows of both whose medians are further apart than the upper half of the one and the lower of the other.

    ``at_least``: the rows whose ratios are the better the larger they are.
    """
    found = []
    for work in known.keys() & now.keys():
        before, after = (_inverse(of[work]) if work in at_least else of[work] for of in (known, now))
        noise = (before.q3 - before.median) + (after.median - after.q1) + BETWEEN_RUNS * before.median
        if after.median > before.median + noise:
            found.append(Worse(work, known[work], now[work]))
    return sorted(found, key=lambda row: row.work)


def _inverse(ratio: Spread) -> Spread:
    """The ratio of the second to the first."""
    return Spread(1 / ratio.median, 1 / ratio.q3, 1 / ratio.q1)
