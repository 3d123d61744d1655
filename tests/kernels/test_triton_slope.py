"""The slope of a step by the Triton kernels: the bits of the reference."""

import pytest
import torch
from helpers import assert_same_bits
from inventory import CASES, INTERPRETED, RICH
from test_slope import SHAPES, run
from triton_worker import POISON, interpreted

import lrtricks_fused as lrt
from lrtricks_fused.step import table
from lrtricks_fused.step.sums import SLOPE_COLUMNS, slope_total

RING = next(case for case in CASES if "momentum_window" in case.kwargs)


def poison_scratch():
    """Partial sums that a step does not write will be seen."""
    scratch = table.AddressTable.slope_scratch
    table.AddressTable.slope_scratch = lambda self: scratch(self).fill_(POISON)


@pytest.mark.parametrize("dtype", INTERPRETED, ids=lambda d: d.name)
@interpreted
def test_equals_reference(dtype):
    poison_scratch()
    for case in (RICH[0], RING):
        assert_same_bits(*(run(case, dtype, backend, SHAPES[:5], steps=1) for backend in ("triton", "reference")))


@pytest.mark.parametrize("chunks", [1, SLOPE_COLUMNS, 2 * SLOPE_COLUMNS + 77])
@interpreted
def test_chunks_to_columns_to_the_total(chunks):
    sums = torch.full((chunks + SLOPE_COLUMNS,), float("nan"), dtype=torch.float64)
    sums[:chunks] = torch.randn(chunks, dtype=torch.float64, generator=torch.Generator().manual_seed(chunks))
    expected = slope_total([sums[:chunks].clone()]) * 0.25 + 3.0
    slope = torch.tensor(3.0, dtype=torch.float64)
    prepared = torch.zeros(table.PREPARED_BYTES // 8, dtype=torch.int64)
    prepared.view(torch.float64)[-2] = 0.25  # 1 / grad_scale; the last word holds flags, none of which is set

    from lrtricks_fused.triton_kernels.instances import total_constexprs
    from lrtricks_fused.triton_kernels.slope import add_columns, sum_columns

    sum_columns[(1,)](sums, chunks)
    for backend in ("cuda", "hip"):
        gaining = slope.clone()
        add_columns[(1,)](sums, chunks, gaining, prepared, **total_constexprs(backend))
        assert torch.equal(gaining, expected)


@interpreted
def test_a_skipped_step_has_none():
    param = torch.ones(70, requires_grad=True)
    param.grad = torch.full((70,), 2.0)
    optimizer = lrt.SGD([param], lr=1.0, backend="triton")
    slopes = {torch.device("cpu"): torch.tensor(3.0, dtype=torch.float64)}
    optimizer.grad_scale = torch.tensor(2.0)
    for found_inf, expected in ((1.0, 3.0), (0.0, 3.0 + 70.0)):  # the gradient is 1, the displacement, too
        optimizer.found_inf = torch.tensor(found_inf)
        with optimizer.add_slopes_to(slopes):
            optimizer.step()
        assert slopes[torch.device("cpu")] == expected
