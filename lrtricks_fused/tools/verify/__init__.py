"""Checks that a machine steps to the reference's bits: an inventory as data, and small functions in a table.

A check runs one optimizer twice, on the target with its backend and on the CPU with the reference backend, and
returns what differs first; those of frozen bits run it once, for their checksum is the same on every machine.
``lrtricks verify`` (cli.py) runs them all; tests run them singly.
"""

import functools
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .checks import (
    check_backend,
    check_bits,
    check_clip,
    check_groups,
    check_overflow,
    check_resume,
    check_slope,
    check_tensor_scalars,
)
from .cuda_checks import (
    check_graph,
    check_measured_step,
    check_no_allocation,
    check_no_synchronisation,
    check_side_stream,
    check_training_graph,
)
from .frozen import SCENES, check_frozen
from .inventory import (
    _OPTIONS,
    CONTIGUOUS,
    F32,
    INTERPRETED,
    KEEP_PROBS,
    LONG,
    RICH,
    SLICES,
    SPECIAL,
    STORAGES,
    STRIDED,
    TINY,
    VARIANTS,
    Storage,
    Target,
    Variant,
    Work,
)
from .stepping import difference

__all__ = ["BACKEND", "FURTHER", "RICH", "SPECIAL", "STORAGES", "STRIDED", "VARIANTS", "Check", "Target", "all_checks",
           "difference", "run_check"]  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A named check; ``run`` returns what is wrong, or None."""

    section: str
    name: str
    run: Callable[[Target], str | None]
    cuda_only: bool = False


def _inventory(quick: bool) -> Iterator[tuple[Variant, Work, Storage, float]]:
    storages = [STORAGES[0], STORAGES[2]] if quick else STORAGES
    for variant in RICH if quick else VARIANTS:
        for storage in storages:
            for keep_prob in [0.5] if quick else KEEP_PROBS:
                yield variant, CONTIGUOUS, storage, keep_prob
            yield variant, STRIDED, storage, 0.5
            yield variant, SPECIAL, storage, 0.5
        yield variant, LONG, F32, 0.3
    for variant in RICH[:1] if quick else RICH:
        for storage in storages[::2]:
            yield variant, TINY, storage, 0.5


def _per_variant(name: str, check: Callable[..., str | None], cuda_only: bool = True, **extra: Any) -> list[Check]:
    return [Check(name, str(v), functools.partial(check, variant=v, **extra), cuda_only) for v in RICH]


MEASURED: dict[str, Any] = dict(track_metrics=True, track_changes=True, max_norm=0.5)
BACKEND = Check("backend", "can run on the device", check_backend)
FURTHER = [
    Check("groups", "several groups, dtypes, parameters without a gradient", check_groups),
    *_per_variant("tensor scalars", check_tensor_scalars, cuda_only=False),
    *_per_variant("slope for LOSSGRAD", check_slope, cuda_only=False),
    *_per_variant("gradient centralization", check_slope, cuda_only=False, work=SLICES, centralize=True),
    *_per_variant("clipping", check_clip, cuda_only=False),
    *_per_variant("overflow on the first step", check_overflow, cuda_only=False),
    *(Check("resume", s.name, functools.partial(check_resume, storage=s)) for s in STORAGES),
    *_per_variant("CUDA graph", check_graph),
    *_per_variant("CUDA graph of a measured step", check_graph, **MEASURED),
    *_per_variant("CUDA graph of training", check_training_graph),
    *_per_variant("side stream", check_side_stream),
    *_per_variant("no synchronisation", check_no_synchronisation),
    *_per_variant("no synchronisation of a measured step", check_measured_step, **MEASURED),
    *_per_variant("no allocation", check_no_allocation),
]


FROZEN_BITS = [Check("frozen bits", name, functools.partial(check_frozen, name=name)) for name in SCENES]


def all_checks(quick: bool = False, interpreted: bool = False) -> list[Check]:
    """The inventory and the further checks.

    ``quick`` takes one variant per class and two dtypes; ``interpreted`` smaller work, for a slow interpreter,
    and with ``quick`` a third of the further checks.
    """
    checks = [BACKEND]
    for variant, work, storage, keep_prob in _inventory(quick):
        work = INTERPRETED.get(work, work) if interpreted else work
        run = functools.partial(check_bits, variant=variant, work=work, storage=storage, keep_prob=keep_prob)
        checks.append(Check(variant.optimizer, f"{variant}, {storage.name}, keep {keep_prob:g}, {work.name}", run))
    further = FURTHER[::3] if quick and interpreted else FURTHER  # two of each section
    frozen = FROZEN_BITS[::9] if interpreted else FROZEN_BITS  # a second each
    # By class, or a progress by section would return to the first.
    return sorted(checks, key=lambda check: ["backend", *_OPTIONS].index(check.section)) + further + frozen


def run_check(check: Check, target: Target) -> str | None:
    """What is wrong, or None; an exception is one of the things that can be."""
    try:
        return check.run(target)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = [f"at {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames]
        return "\n".join([f"{type(error).__name__}: {error}", *where])
