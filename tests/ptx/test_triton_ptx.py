"""The PTX that Triton compiles ahead of time, by the project's launcher, against the reference, bit for bit.

Reduced: every rule's richest variant in f32, Adam in all types, with every trick and in every kind of storage, for one
target; SGD and Adam in f32 for the others. With LRTRICKS_FULL=1 all scenes of all variants in all types for all
targets.
"""

import pytest
from helpers import assert_same_bits
from inventory import CASES, DTYPES, FULL, RICH
from scenes import EXHAUSTIVE, RINGS, STORAGE, TRICKS, steps
from triton_ptx import gpu

TARGETS = (90, 80, 100, 120)
ADAM = next(case for case in RICH if case.ours.__name__ == "Adam")
F32 = DTYPES[0]


def rows():
    """(target, scene, variant, types)."""
    if FULL:
        all_types = [(t, s, c, d) for t in TARGETS for s in EXHAUSTIVE.items() for c in CASES for d in DTYPES]
        return all_types + [(t, s, c, F32) for t in TARGETS for s in STORAGE.items() for c in CASES if c not in RINGS]
    plain = ("steps", steps)
    chosen = [(TARGETS[0], plain, c, F32) for c in RICH] + [(TARGETS[0], plain, ADAM, d) for d in DTYPES[1:]]
    chosen += [(TARGETS[0], s, ADAM, F32) for s in (*TRICKS.items(), *STORAGE.items())]
    return chosen + [(t, plain, c, F32) for t in TARGETS[1:] for c in (RICH[0], ADAM)]


def label(value):
    return f"sm_{value}" if isinstance(value, int) else value[0] if isinstance(value, tuple) else value.name


@pytest.mark.parametrize(("arch", "scene", "case", "dtype"), rows(), ids=label)
def test_equals_reference(arch, scene, case, dtype, monkeypatch):
    expected = scene[1](case, dtype, "reference")
    driver = gpu(monkeypatch, arch)
    assert_same_bits(scene[1](case, dtype, "triton"), expected)
    assert any(name == "step_kernel" for machine in driver.machines.values() for name, _, _ in machine.launches)
