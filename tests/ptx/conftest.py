"""Where the PTX is executed: ``make test-ptx``. Without it, only the machine's own tests run."""

import os
import sys
from pathlib import Path

import cuda_on_host
import native_ptx
import pytest
from native_ptx import library

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
EXECUTED = os.environ.get("LRTRICKS_PTX") == "1"
if EXECUTED and (reason := native_ptx.why_not()):
    raise pytest.UsageError(f"test-ptx: {reason}")
collect_ignore = [] if EXECUTED else ["test_library_ptx.py", "test_triton_ptx.py", "test_contraction.py"]


@pytest.fixture(scope="session")
def devices():
    """Machines with the library's PTX, by target."""
    return {target: native_ptx.Device(texts) for target, texts in library().items()}


@pytest.fixture
def on_ptx(devices, implement, monkeypatch):
    """Makes the native backend the PTX of a target: ``on_ptx("sm_90")``."""

    def enter(target):
        device = devices[target]
        device.patch(monkeypatch)
        implement("native", cuda_on_host.step, cuda_on_host.prepare, cuda_on_host.squares, cuda_on_host.clip)
        return device

    return enter
