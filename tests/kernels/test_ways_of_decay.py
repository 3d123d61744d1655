"""Weight decay in the way that the classes of a rule do not have, for which its kernels have no loops of their own.

A group's ``decoupled_weight_decay``, set by hand, asks for it: the same bits as the reference, by slower code.
"""

from dataclasses import replace

import pytest
import test_slope
import test_storage_by_rows
from helpers import assert_same_bits
from inventory import DTYPES, RICH
from test_native_equals_reference import run
from test_storage_by_rows import BY_ROWS

import lrtricks_fused as lrt


def edited(case):
    """The case, with decoupled decay where the class has coupled, and the other way round."""

    def make(*args, **kwargs):
        optimizer = case.ours(*args, **kwargs)
        for group in optimizer.param_groups:
            group["decoupled_weight_decay"] = not group.get("decoupled_weight_decay", False)
        return optimizer

    return replace(case, ours=make)


ONE_WAY = [c for c in RICH if c.ours in (lrt.SGD, lrt.RMSprop, lrt.Lion) and "momentum_window" not in c.kwargs]
EDITED = pytest.mark.parametrize("case", [edited(case) for case in ONE_WAY], ids=lambda c: c.name)


@EDITED
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_native_equals_reference(case, dtype, isa):
    for keep_prob in (0.5, 1.0):
        assert_same_bits(*(run(case, dtype, keep_prob, backend) for backend in ("native", "reference")))


@EDITED
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_slopes(case, dtype, isa):
    assert_same_bits(*(test_slope.run(case, dtype, backend) for backend in ("native", "reference")))


@EDITED
@pytest.mark.parametrize("kind", BY_ROWS.values(), ids=BY_ROWS.keys())
def test_stored_in_sixteen_bits(case, kind, isa):
    assert_same_bits(*(test_storage_by_rows.run(case, kind, backend)[0] for backend in ("native", "reference")))


def test_it_is_another_way():
    for case in ONE_WAY:
        usual, other = (run(way, DTYPES[0], 0.5, "native") for way in (case, edited(case)))
        assert any((a != b).any() for a, b in zip(usual, other, strict=True))
