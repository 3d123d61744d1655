"""What is compiled for one instruction set is in functions of its own: of several the linker would take any one."""

import shutil
import subprocess
from pathlib import Path

import pytest

OBJECTS = Path(__file__).parents[2] / "build" / "release"
ISAS = ("Avx512", "Avx2", "Baseline")


@pytest.mark.parametrize("isa", ISAS)
def test_no_function_is_shared_with_other_instruction_sets(isa):
    objects = sorted(OBJECTS.glob(f"cpu.*.{isa}.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("the library was not built here with these instructions, or there is no nm")
    listed = subprocess.run(["nm", "-C", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    weak = [line[19:] for line in listed.splitlines() if line[17:18] in ("W", "V", "u")]
    assert weak
    assert not [name for name in weak if f"lrt::cpu::{isa}" not in name]
