"""The PTX of the built library, by its own launchers, against the reference, bit for bit.

Reduced: every variant in f32, every rule's richest one in all types, every trick of three rules, every kind of storage
of Adam, one of every rule, for the newest target; the richest variants in f32, the tricks and kinds of storage of Adam
for all other targets. With LRTRICKS_FULL=1 all scenes of all variants in all types for all targets.
"""

import subprocess

import native_ptx
import pytest
from helpers import assert_same_bits
from inventory import CASES, DTYPES, FULL, RICH
from scenes import EXHAUSTIVE, RINGS, STORAGE, TRICKS, steps

TARGETS = sorted(native_ptx.library(), key=lambda name: int(name.strip("sm_af")))
NEWEST, OTHERS = TARGETS[-1:], TARGETS[:-1]
ADAM = next(case for case in RICH if case.ours.__name__ == "Adam")
RING = next(case for case in RICH if "momentum_window" in case.kwargs)
F32, BF16 = DTYPES[0], next(dtype for dtype in DTYPES if dtype.name == "bf16-bf16")


def rows():
    """(target, scene, variant, types)."""
    if FULL:
        all_types = [(t, s, c, d) for t in TARGETS for s in EXHAUSTIVE.items() for c in CASES for d in DTYPES]
        return all_types + [(t, s, c, F32) for t in TARGETS for s in STORAGE.items() for c in CASES if c not in RINGS]
    plain = ("steps", steps)
    chosen = [(t, plain, c, F32) for t in NEWEST for c in CASES]
    chosen += [(t, plain, c, d) for t in NEWEST for c in RICH for d in DTYPES[1:]]
    chosen += [(t, s, c, F32) for t in NEWEST for s in EXHAUSTIVE.items() for c in (ADAM, RING) if s[0] != "steps"]
    chosen += [(t, s, RICH[0], BF16) for t in NEWEST for s in TRICKS.items()]
    chosen += [(t, s, ADAM, F32) for t in TARGETS for s in STORAGE.items()]
    chosen += [(t, ("offload", STORAGE["offload"]), c, F32) for t in NEWEST for c in RICH if c not in (ADAM, *RINGS)]
    chosen += [(t, plain, c, F32) for t in OTHERS for c in RICH]
    return chosen + [(t, s, ADAM, F32) for t in OTHERS for s in TRICKS.items()]


def test_the_launchers_are_those_of_the_library():
    seen = set()
    for path in native_ptx.objects():
        for target, texts in native_ptx.texts_of(path).items():
            assert texts.items() <= native_ptx.library()[target].items(), (path, target)
            seen |= {(target, name) for name in texts}
    assert seen == {(target, name) for target, texts in native_ptx.library().items() for name in texts}


def test_no_launcher_calls_a_function_of_the_device():
    # nvcc lets a template of the host do so without a word: the process ends there, by exit(1).
    for path in native_ptx.objects():
        undefined = subprocess.run(["nm", "-u", path], capture_output=True, text=True, check=True).stdout.split()
        assert "__cudaLaunchKernel" in undefined and "exit" not in undefined, path


@pytest.mark.parametrize(("scene", "mapped"), [("12 steps", False), ("shards", True), ("channels_last", True)])
def test_shards_and_tensors_in_channels_last_have_kernels_of_their_own(scene, mapped, on_ptx):
    device = on_ptx(*NEWEST)
    before = len(device.machine.launches)
    TRICKS[scene](ADAM, F32, "native")
    launched = {name for name, _, _ in device.machine.launches[before:] if "step_kernel" in name}
    assert launched and any("step_kernelILb1E" in name for name in launched) == mapped


def label(value):
    return value if isinstance(value, str) else value[0] if isinstance(value, tuple) else value.name


@pytest.mark.parametrize(("target", "scene", "case", "dtype"), rows(), ids=label)
def test_equals_reference(target, scene, case, dtype, on_ptx):
    expected = scene[1](case, dtype, "reference")
    device = on_ptx(target)
    before = len(device.machine.launches)
    assert_same_bits(scene[1](case, dtype, "native"), expected)
    assert any("_kernel" in name for name, _, _ in device.machine.launches[before:])
