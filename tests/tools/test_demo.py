"""The demo on a busy machine: what it tells, and which step times it does not draw."""

import time

import pytest

from bench.report import OthersShare
from bench.timing import Timings
from examples import demo


def timings_of(seconds):
    return Timings({name: seconds for name in demo.STEP_LABELS})


@pytest.mark.parametrize(
    ("seconds", "share", "told"),
    [
        ([0.010, 0.011, 0.012], 0.0, ""),
        ([0.010, 0.011, 0.012], 0.3, "others used 30% of the processor meanwhile"),
        ([0.010, 0.020, 0.030], 0.0, "half of the steps of 'paper recipe' lie further apart than 15 and 25 ms"),
    ],
)
def test_a_busy_machine_is_told(seconds, share, told):
    assert demo.unrest(timings_of(seconds), share) == told
    assert ("step_times" in demo.places(demo.TRACKED_FIGURES, not told)[0]) == (not told)


def test_others_share_leaves_out_what_this_process_uses():
    others = OthersShare()
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    assert 0 <= others.so_far() <= 1
    quiet = OthersShare()
    quiet._own -= 1e6  # as if this process had used more than there is
    assert quiet.so_far() == 0
