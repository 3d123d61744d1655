"""Fixtures: instruction sets, the CUDA kernels on the host, thread counts.

All are restored after each test.
"""

import gc
import os
import re

import pytest
import torch
from cuda_on_host import clip as clip_on_host
from cuda_on_host import prepare as prepare_on_host
from cuda_on_host import squares as squares_on_host
from cuda_on_host import step as step_on_host
from inventory import FULL, ISAS

from lrtricks_fused.step import backends, native


def pytest_collection_modifyitems(items):
    """On a GPU what Triton has to compile comes last: a machine that is lent for minutes has run all else by then.

    Under sanitizers float16, whose accesses are those of bfloat16, is left to LRTRICKS_FULL=1.
    """
    if os.environ.get("LRTRICKS_SANITIZE") == "1" and not FULL:
        items[:] = [item for item in items if not re.search(r"(?<!b)f16", item.name)]
    if torch.cuda.is_available():
        items.sort(key=lambda item: "triton" in item.nodeid)


def pytest_collection_finish():
    """Thousands of tests are objects, which a full collection of garbage would look at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _native_library_is_there():
    # Without it "auto" is the reference, and native == reference would hold for nothing.
    assert native.load_error is None, native.load_error


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Each instruction set of this machine in turn."""
    monkeypatch.setenv("LRTRICKS_CPU_ISA", request.param)
    try:
        active = torch.ops.lrtricks_fused.cpu_isa()
    except RuntimeError as error:
        pytest.skip(f"this machine lacks {request.param}: {error}")
    assert active == request.param
    return request.param


@pytest.fixture
def implement():
    """Registers another step as a backend, until the test ends: ``implement(name, step)``."""
    before = []

    def enter(name, *functions):
        before.append(backends.register(backends.Backend(name, *functions)))

    yield enter
    for backend in reversed(before):
        backends.register(backend)


@pytest.fixture
def on_host(implement):
    """Makes the native backend the CUDA kernels on the host."""
    implement("native", step_on_host, prepare_on_host, squares_on_host, clip_on_host)


@pytest.fixture(autouse=True)
def threads():
    """Sets the number of threads: 1 unless the test asks for more.

    On these small tensors waiting for a second thread costs more than it gives, on a busy machine many times more.
    """
    torch.set_num_threads(1)
    return torch.set_num_threads


@pytest.fixture
def torch_numbers_float64():
    """torch.optim's states of one number (step, NAdam's mu_product), which have the default dtype, are as ours."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
