"""Element indices beyond 2**31: the tail of such a parameter is stepped, with the right bits.

Skipped where the memory for it is not free.
"""

import os

import numpy
import philox_numpy
import pytest
import torch

NUMEL = 2**31 + 1000
FREE = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(FREE < 3 * NUMEL, reason=f"needs {3 * NUMEL / 2**30:.1f} GiB of free memory")
def test_more_than_2_to_the_31_elements(threads):
    threads(2)
    param = torch.zeros(NUMEL, dtype=torch.bfloat16)
    grad = torch.ones(1, dtype=torch.bfloat16).expand(NUMEL)
    torch.ops.lrtricks_fused.sgd_(
        [param], [grad], [], [torch.tensor(6.0, dtype=torch.float64)], [3],
        momentum=0.0, dampening=0.0, nesterov=False, lr=1.0, weight_decay=0.0, decoupled_weight_decay=False,
        maximize=False, keep_prob=0.5, grad_weight=1.0, seed=77,
    )  # fmt: skip
    for first in (0, 2**31 - 3000, NUMEL - 2000):
        elements = numpy.arange(first, first + 2000)
        kept = torch.from_numpy(philox_numpy.keep_bits(elements, 77, 7, 3).astype(numpy.int64)) < 32768
        assert torch.equal(param[first : first + 2000] != 0, kept)
