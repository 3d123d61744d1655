"""Shards draw the bits of the whole parameter's elements that they hold (lrtricks_fused.step.keep.IndexMap)."""

import numpy
import philox_numpy
import pytest
import torch

from lrtricks_fused.step import keep
from lrtricks_fused.step.keep import IndexMap

MAPS = [
    IndexMap(0, 1, 1), IndexMap(0, 2000, 0), IndexMap(512, 4000, 0), IndexMap(1, 2000, 0), IndexMap(511, 1 << 40, 0),
    IndexMap(3, 1, 2), IndexMap(5, 7, 11), IndexMap(0, 63, 64), IndexMap(64, 64, 128), IndexMap(9, 65, 1000),
    IndexMap(513, 513, 513), IndexMap(4096, 512, 5120), IndexMap(2**32 * 8 - 700, 1100, 2**33),
    IndexMap(2**59 - 2000, 2000, 0), IndexMap(8, 8, 24),
]  # fmt: skip
INVALID = [
    (IndexMap(-1, 5, 5), "base >= 0"), (IndexMap(0, 0, 5), "run >= 1"), (IndexMap(0, -3, 5), "run >= 1"),
    (IndexMap(0, 5, 4), "pitch >= run"), (IndexMap(0, 99, -1), "pitch >= run"),
    (IndexMap(2**59 - 99, 100, 0), "below element"), (IndexMap(0, 1, 2**53), "below element"),
    (IndexMap(2**63, 100, 0), "below element"),
]  # fmt: skip


@pytest.mark.parametrize("index_map", MAPS, ids=str)
@pytest.mark.parametrize("numel", [0, 1, 1500])
def test_bits_are_those_of_the_elements(index_map, numel):
    elements = [index_map.base + i // index_map.run * index_map.pitch + i % index_map.run for i in range(numel)]
    wanted = philox_numpy.keep_bits(elements, 77, 7, 3).astype(numpy.int64)
    assert torch.equal(keep.keep_bits(numel, 77, 7, 3, index_map=index_map), torch.from_numpy(wanted))
    mask = keep.keep_mask(torch.Size([numel]), 0.5, 77, 7, 3, index_map=index_map)
    assert torch.equal(mask, torch.from_numpy(wanted) < 32768)


@pytest.mark.parametrize(("index_map", "text"), INVALID, ids=str)
def test_what_is_no_map_has_no_bits(index_map, text):
    with pytest.raises(ValueError, match=f"Invalid index map .* of 100 elements: must .*{text}"):
        keep.keep_bits(100, 0, 1, 0, index_map=index_map)
