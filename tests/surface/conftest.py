"""Fixtures of steps that repeat others."""

import pytest

from lrtricks_fused.optim.base import MaskedOptimizer


@pytest.fixture
def whole_steps(monkeypatch):
    """One entry for each step that is not repeated."""
    taken, plain = [], MaskedOptimizer._take

    def noted(self, *args, **kwargs):
        taken.append(self)
        plain(self, *args, **kwargs)

    monkeypatch.setattr(MaskedOptimizer, "_take", noted)
    return taken


@pytest.fixture(params=["cpu", "device"])
def cpu_or_device(request):
    """Where the native backend steps: by the CPU's kernels, or by those of CUDA on the host."""
    on_device = request.param == "device"
    if on_device:
        request.getfixturevalue("on_host")
    return on_device
