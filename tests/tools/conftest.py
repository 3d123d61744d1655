"""What tests of the tools share."""

import bench_machine
import pytest


@pytest.fixture
def machine(monkeypatch, implement):
    """A GPU for bench.gpu that is none, see bench_machine.py."""
    bench_machine.install(monkeypatch, implement)
