"""The conversions of the Triton kernels between float32 and what is stored, against those in tensor operations."""

import pytest
import torch
from helpers import assert_same_bits
from triton_worker import interpreted

from lrtricks_fused.step.rounding import joined, split, stochastically_rounded
from lrtricks_fused.step.staged import packed_bits

COUNT = 2**16
POISON = 0x5A5A


def random_words(seed: int, bits: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, (COUNT,), generator=generator) - (2**31 if bits == 32 else 0)


def every_exponent() -> torch.Tensor:
    """float32 of random bits, and all 16-bit numbers with few bits behind the cut, on both sides of it."""
    cuts = torch.arange(COUNT) << 16
    low = torch.tensor([0, 1, 0x1000, 0x1FFF, 0x7FFF, 0x8000, 0x8001, 0xFFFF])[torch.arange(COUNT) % 8]
    near = ((cuts + low) ^ 2**31) - 2**31
    return torch.cat([random_words(1), near]).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@interpreted
def test_stochastic_rounding(dtype):
    import triton.language as tl
    from triton_functions import round_stochastically

    small = torch.linspace(-(2.0**-13), 2.0**-13, COUNT)  # with all of float16's subnormals among them
    for reals in (*every_exponent().split(COUNT), small, torch.full((COUNT,), -65519.0)):
        for bits in (random_words(2, 16), torch.zeros(COUNT, dtype=torch.long), torch.full((COUNT,), 2**16 - 1)):
            out = torch.full((COUNT,), POISON, dtype=torch.int16)
            storage = getattr(tl, str(dtype).removeprefix("torch."))
            round_stochastically[(1,)](reals, bits, out, storage, COUNT)
            assert_same_bits([out.view(dtype)], [stochastically_rounded(reals, bits, dtype)])


@interpreted
def test_split_masters():
    from triton_functions import split_and_join

    for masters in (every_exponent() + 0.0).split(COUNT):  # a NaN that is computed is quiet
        high, low = (torch.full((COUNT,), POISON, dtype=torch.int16) for _ in range(2))
        joint = torch.full((COUNT,), torch.inf)
        split_and_join[(1,)](masters, high, low, joint, COUNT)
        assert_same_bits([joint], [masters])
        numbers = ~masters.isnan()
        own, theirs = [high.view(torch.bfloat16), low], split(masters)
        assert_same_bits([of[numbers] for of in own], [of[numbers] for of in theirs])
        assert high.view(torch.bfloat16)[masters.isnan()].isnan().all()
        assert_same_bits([joint], [joined(high.view(torch.bfloat16), low)])


@pytest.mark.parametrize("stepped", [0, 1, 7, 8, 9, 1000, COUNT])
@pytest.mark.parametrize("backwards", [False, True])
@interpreted
def test_bits_of_bytes(stepped, backwards):
    from triton_functions import add_bits

    flags = random_words(3, 1).to(torch.uint8)
    flags[stepped:] = 0
    before = random_words(4, 8)[: COUNT // 8].to(torch.uint8)
    out = before.clone()
    add_bits[(1,)](flags, out, stepped, COUNT // 8, stepped == COUNT, backwards)
    assert torch.equal(out, before | packed_bits(flags != 0))
