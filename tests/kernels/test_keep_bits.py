"""The frozen keep bits: Random123's vectors, the design's known answers, an independent implementation, the kernel.

These tests may never change (design section 4): checkpoints depend on them.
"""

import math

import numpy
import philox_numpy
import pytest
import torch
from helpers import random_grads
from inventory import RICH
from native_mask import native_mask

import lrtricks_fused as lrt
from lrtricks_fused.step import keep

PI = ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0")
ONES = ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff")
ZEROS = ("00000000 00000000 00000000 00000000", "00000000 00000000")
# The philox4x32 lines of Random123's kat_vectors.
KAT_VECTORS = [
    (7, *ZEROS, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, *ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, *PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, *ZEROS, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, *ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, *PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# seed, step, param, first element, bits of eight elements (design section 4)
KNOWN_BITS = [
    (0, 1, 0, 0, "1a9a ef7a b99a 1ccb fa5f 8561 fed8 563d"),
    (0, 1, 0, 64, "1a38 ea29 190c b1ab b7aa baea c7d2 d31f"),
    (0x123456789ABCDEF0, 7, 3, 1000, "fe15 ff94 e314 9bd8 ca9e e953 fd2a db96"),
]
# seed, step, param, keep_prob, kept of the first 1e6
KNOWN_COUNTS = [(0, 1, 0, 0.3, 299_985), (42, 1000, 17, 0.5, 500_529)]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("rounds", "counter", "key", "wanted"), KAT_VECTORS)
def test_random123_vectors(rounds, counter, key, wanted):
    low, high = words(key)
    ours = keep.philox4x32(tuple(torch.tensor([word]) for word in words(counter)), high << 32 | low, rounds)
    assert [int(word) for word in ours] == words(wanted)
    assert [int(word) for word in philox_numpy.philox4x32(words(counter), (low, high), rounds)] == words(wanted)


@pytest.mark.parametrize(("seed", "step", "param", "first", "wanted"), KNOWN_BITS)
def test_known_bits(seed, step, param, first, wanted):
    assert keep.keep_bits(first + 8, seed, step, param)[first:].tolist() == words(wanted)
    assert philox_numpy.keep_bits(range(first, first + 8), seed, step, param).tolist() == words(wanted)


@pytest.mark.parametrize(("seed", "step", "param", "keep_prob", "wanted"), KNOWN_COUNTS)
def test_known_counts(seed, step, param, keep_prob, wanted, isa):
    assert int(keep.keep_mask(torch.Size([10**6]), keep_prob, seed, step, param).sum()) == wanted
    assert int(native_mask(10**6, keep_prob, seed, step, param).sum()) == wanted


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_of_64_bit_seeds_and_large_steps_and_indices(seed):
    for step in (1, 2**24 + 1, 2**32 - 1, 2**32 + 5):
        for param in (0, 1, 2**31, 2**32 - 1):
            wanted = philox_numpy.keep_bits(range(1500), seed, step, param).astype(numpy.int64)
            assert torch.equal(keep.keep_bits(1500, seed, step, param), torch.from_numpy(wanted))


@pytest.mark.parametrize("seed", SEEDS)
def test_native_draws_the_same_bits(seed, isa):
    # Three thresholds locate each element's bits; seeds, steps and indices as far as 64, 53 and 32 bits go.
    for step in (1, 2**24 + 1, 2**32 - 1, 2**32 + 5):
        for param in (0, 1, 2**31, 2**32 - 1):
            bits = torch.from_numpy(philox_numpy.keep_bits(range(1500), seed, step, param).astype(numpy.int64))
            for keep_prob in (0.1, 0.5, 0.9):
                assert torch.equal(native_mask(1500, keep_prob, seed, step, param), bits < round(keep_prob * 65536))


@pytest.mark.parametrize("n", [2**32 - 1, 2**32, 2**32 + 3, 2**40 + 17, 2**55 + 2**33 + 9])
def test_counters_beyond_32_bits(n):
    high = n >> 32
    counter = (torch.tensor([n & 0xFFFFFFFF]), torch.tensor([high]), torch.tensor([5]), torch.tensor([2]))
    ours = [int(word) for word in keep.philox4x32(counter, 2**64 - 3)]
    wanted = philox_numpy.philox4x32((n % 2**32, high, 5, 2), (2**32 - 3, 2**32 - 1), 7)
    assert ours == [int(word) for word in wanted]
    element = n // 64 * 512 + n % 64  # row 0: the low half of word 0
    assert int(philox_numpy.keep_bits([element], 2**64 - 3, 5, 2)[0]) == ours[0] & 0xFFFF


# T = rint(keep_prob * 65536), ties to even, clamped to [1, 65535]
THRESHOLDS = [
    (0.0, 0), (1e-9, 1), (5e-324, 1), (0.5 / 65536, 1), (1.5 / 65536, 2), (2.5 / 65536, 2), (3.5 / 65536, 4),
    (0.3, 19661), (0.5, 32768), (1 - 1e-9, 65535), (1 - 2**-53, 65535), (65534.5 / 65536, 65534), (1.0, 65536),
]  # fmt: skip


@pytest.mark.parametrize(("keep_prob", "threshold"), THRESHOLDS)
def test_threshold(keep_prob, threshold, isa):
    assert keep.keep_threshold(keep_prob) == threshold
    bits = keep.keep_bits(2**20, 3, 1, 0)
    mask = native_mask(2**20, keep_prob, seed=3)
    assert torch.equal(mask, bits < threshold)
    assert 0 < int(mask.sum()) < 2**20 or threshold in (0, 65536)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
def test_keep_mask_is_what_a_step_moves(case, backend):
    # Several tensors of several shapes in two groups with other keep_prob; every element has a gradient far from 0.
    params = [torch.full(shape, 3.0).requires_grad_() for shape in [(700,), (), (33, 65), (2, 8, 9, 9)]]
    params[3].data = params[3].data.contiguous(memory_format=torch.channels_last)
    optimizer = case.make(
        [{"params": params[:2], "keep_prob": 0.5}, {"params": params[2:], "keep_prob": 0.3, "seed": 7}],
        seed=2**63 + 11, backend=backend, lr=0.1,
    )  # fmt: skip
    for step in range(1, 6):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.full_like(param, 1.0 + step)
        optimizer.step()
        for index, (param, old) in enumerate(zip(params, before, strict=True)):
            mask = optimizer.keep_mask(param, step)
            assert torch.equal(mask, param != old)
            seed, keep_prob = (2**63 + 11, 0.5) if index < 2 else (7, 0.3)
            bits = philox_numpy.keep_bits(range(param.numel()), seed, step, index).astype(numpy.int64)
            assert torch.equal(mask, torch.from_numpy(bits).view(param.shape) < round(65536 * keep_prob))


def test_the_kept_elements_move_as_without_a_mask_and_the_others_not():
    for case in RICH:
        (masked,), (plain,) = [[torch.linspace(-2, 2, 3000).requires_grad_()] for _ in range(2)]
        with_mask, without = case.make([masked], keep_prob=0.4), case.make([plain], keep_prob=1.0)
        before = masked.detach().clone()
        for optimizer, param in ((with_mask, masked), (without, plain)):
            random_grads([param], 1)
            optimizer.step()
        mask = with_mask.keep_mask(masked, 1)
        assert torch.equal(masked, torch.where(mask, plain, before))
        assert 0.3 < mask.float().mean() < 0.5


def test_keep_mask_follows_the_groups_keep_prob():
    param = torch.zeros(100_000, requires_grad=True)
    optimizer = lrt.SGD([param], keep_prob=torch.tensor(0.25), seed=5)
    assert math.isclose(float(optimizer.keep_mask(param, 9).float().mean()), 0.25, abs_tol=0.01)
    optimizer.param_groups[0]["keep_prob"] = 1.0
    assert optimizer.keep_mask(param, 9).all()
    optimizer.param_groups[0]["keep_prob"] = 0
    assert not optimizer.keep_mask(param, 9).any()


@pytest.mark.parametrize("step", [0, -3])
def test_keep_mask_refuses_steps_before_the_first(step):
    param = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=f"step={step}"):
        lrt.SGD([param]).keep_mask(param, step)


def test_keep_mask_refuses_a_stranger():
    with pytest.raises(ValueError, match=r"Invalid param of shape \(3,\)"):
        lrt.SGD([torch.zeros(3, requires_grad=True)]).keep_mask(torch.zeros(3), 1)


def test_keep_bits_do_not_use_torchs_generator():
    param = torch.ones(1000, requires_grad=True)
    param.grad = torch.ones(1000)
    optimizer = lrt.SGD([param], lr=1.0, keep_prob=0.5)
    before = torch.get_rng_state()
    optimizer.step()
    optimizer.keep_mask(param, 3)
    assert torch.equal(torch.get_rng_state(), before)
