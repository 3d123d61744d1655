"""What is stored otherwise than it is stepped, and metrics, around the Triton kernels: the bits of the reference."""

import pytest
from helpers import assert_same_bits
from inventory import DTYPES, RICH
from test_metrics import run as run_metrics
from test_storage import SHAPES, STORED, run
from triton_worker import interpreted


@pytest.mark.parametrize("name", [name for name in STORED if "fp16" not in name])
@interpreted
def test_equals_reference(name):
    options = {"max_norm": 0.3, "track_metrics": True}
    results = (
        run(RICH[1], STORED[name], backend, SHAPES[1:], steps=2, **options) for backend in ("triton", "reference")
    )
    assert_same_bits(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@interpreted
def test_metrics_equal_the_reference(dtype):
    for case in (RICH[1], RICH[-1]):
        assert_same_bits(*(run_metrics(case, dtype, backend, SHAPES[1:]) for backend in ("triton", "reference")))
