"""bench.gpu's rows of 16 bits: checked and timed beside the same without, and refused where bits differ."""

import pytest
import torch
from bench_machine import NATIVE, OURS, run
from inventory import FULL

from bench.gpu import rows
from lrtricks_fused.step import native

STORED = "rounding=|master=|mirror|track_changes" if FULL else "master=|mirror"


def test_what_is_stored_in_16_bits_is_timed_beside_the_same_without(machine, tmp_path):
    code, written = run("--rows", STORED, *NATIVE, file=tmp_path / "x.json")
    assert code == 0 and len(written["rows"]) == (len(list(rows.in_sixteen_bits())) if FULL else 2)
    for row in written["rows"]:
        *_peers, plain, stored, _copy = row["timed"]
        assert plain == OURS[0] and stored.startswith(f"{plain}, ") and row["name"].endswith(stored.removeprefix(plain))
    (offloaded,) = [row for row in written["rows"] if "mirror" in row["name"]]
    assert offloaded["baseline"] == "torch fused between casts"
    assert offloaded["timed"][f"{OURS[0]}, bf16 mirror"]["bytes"] == 28 / 26 * offloaded["timed"][OURS[0]]["bytes"]


@pytest.mark.parametrize("name", ["bf16 mirror", "track_changes=True"])
def test_what_lies_beside_of_other_bits_is_an_error(name, machine, implement, tmp_path):
    def wrong(call):
        native.native_step(call)
        for beside in (*(call.storage.mirrors or ()), *(call.storage.changes or ())) if call.storage else ():
            beside.view(torch.uint8)[-1:] ^= 1

    implement("native", wrong, native.prepare)
    code, written = run("--rows", name, *NATIVE, file=tmp_path / "x.json")
    assert code == 1
    ((row, text),) = written["missing"].items()
    assert row.endswith(f"{OURS[0]}, {name}") and f"after 3 steps: parameter 0, {name}: 1 of" in text
