"""Steps have the bits that were written down: on every machine, and after every change of both backends at once."""

import pytest
import torch

from lrtricks_fused.tools import verify
from lrtricks_fused.tools.verify import frozen
from lrtricks_fused.tools.verify.frozen_bits import FROZEN

CPU = torch.device("cpu")
EXACT = ["0x1.15e9d80000000p-1", "0x1.3407b00000000p-1", "-0x1.68cbf80000000p-1", "0x1.7525a00000000p-2"]


@pytest.mark.parametrize("name", frozen.SCENES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_frozen_bits(backend, name):
    assert frozen.check_frozen(verify.Target(CPU, backend), name=name) is None


def test_all_are_written_down_and_differ():
    assert FROZEN.keys() == frozen.SCENES.keys()
    assert FROZEN["Adam()"] == FROZEN["AdamW(weight_decay=0.0)"]
    assert len({*FROZEN.values()}) == len(FROZEN) - 1  # no other flag does nothing


def test_inputs_are_exact():
    """Of integers alone: known numbers, not this machine's generator."""
    got = frozen.whole((4,), torch.float64, 1000)
    assert [number.hex() for number in got.tolist()] == EXACT
    assert frozen.whole((100_000,), torch.float32, 0).abs().max() < 1


def test_another_bit_is_seen(monkeypatch):
    name = "SGD()"
    monkeypatch.setattr(frozen, "SCENES", {name: [frozen.Scene(frozen.VARIANTS[0], options=dict(seed=1))]})
    assert "checksum" in frozen.check_frozen(verify.Target(CPU, "reference"), name=name)
