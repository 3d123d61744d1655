"""Clipping in the step by the Triton kernels: the bits of the reference."""

import math

import pytest
import torch
from helpers import assert_same_bits, everything, leaves, random_grads
from inventory import INTERPRETED, RICH
from test_clip import SHAPES, run
from test_triton_slope import poison_scratch
from triton_worker import interpreted

import lrtricks_fused as lrt
from lrtricks_fused.step import backends, reference
from lrtricks_fused.step.sums import SLOPE_COLUMNS


@pytest.mark.parametrize("dtype", INTERPRETED, ids=lambda d: d.name)
@interpreted
def test_equals_reference(dtype):
    poison_scratch()
    assert_same_bits(*(run(RICH[0], dtype, backend, SHAPES[:6], steps=1) for backend in ("triton", "reference")))


@interpreted
def test_a_group_of_several_dtypes_and_layouts():
    results = []
    for backend in ("triton", "reference"):
        params = [*leaves((70,), (33,)), *leaves((9,), (300,), dtype=torch.float64), *leaves((70,), (5, 6), seed=2)]
        params = [params[i] for i in (0, 2, 1, 3, 4)] + [params[5].detach().T.requires_grad_()]
        optimizer = lrt.SGD(params, momentum=0.9, max_norm=0.5, backend=backend)
        for step in range(2):
            random_grads(params, step)
            optimizer.grad_scale = torch.tensor(4.0 + step)
            optimizer.step()
        results.append([optimizer.grad_norm, *everything(optimizer)])
    assert_same_bits(*results)


@pytest.mark.parametrize("count", [1, SLOPE_COLUMNS, 2 * SLOPE_COLUMNS + 77])
@interpreted
def test_the_factor(count):
    squares = torch.full((count + SLOPE_COLUMNS,), math.nan, dtype=torch.float64)
    for number in range(3):
        generator = torch.Generator().manual_seed(count + number)
        squares[:count] = torch.rand(count, dtype=torch.float64, generator=generator) / count
        for max_norm in (0.3, 0.0, math.inf):
            results = []
            for clip in (backends._triton_clip, reference.clip):
                norm, factor = torch.zeros(2, dtype=torch.float64)
                clip(squares.clone(), norm, factor, torch.tensor(1.5), max_norm)
                results.append([norm, factor])
            assert_same_bits(*results)
