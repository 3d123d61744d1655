"""Are the keep decisions Bernoulli(keep_prob), independent per scalar and per step (the paper, Algorithm 1)?

All bounds are 5 sigma of the exact distribution; the draws are fixed, so a pass today is a pass for ever.
"""

import math

import pytest
import torch
from native_mask import native_mask
from numpy import count_nonzero as count

import lrtricks_fused as lrt

N = 10**7
SIGMAS = 5.0
DRAWS = [dict(), dict(step=2), dict(step=1000), dict(param=1), dict(param=160), dict(seed=1), dict(seed=2**63 + 5)]


def mask_of(keep_prob, numel=N, **draw):
    """As numpy array: its count_nonzero takes 1 ms where torch's sum of bools takes 40."""
    return native_mask(numel, keep_prob, **draw).numpy()


def correlation(left, right, keep_prob):
    """Sample correlation of two masks whose means are known; N(0, 1 / size) if they are independent."""
    kept = count(left) + count(right)
    covariance = count(left & right) - keep_prob * kept + left.size * keep_prob**2
    return covariance / (left.size * keep_prob * (1 - keep_prob))


@pytest.mark.parametrize("keep_prob", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_rate_of_each_tensor_step_and_seed(keep_prob):
    sigma = math.sqrt(N * keep_prob * (1 - keep_prob))
    for draw in DRAWS:
        kept = count(mask_of(keep_prob, **draw))
        assert abs(kept - N * keep_prob) < SIGMAS * sigma, draw


@pytest.mark.parametrize("keep_prob", [0.3, 0.5])
def test_steps_tensors_and_seeds_are_independent(keep_prob):
    masks = [mask_of(keep_prob, **draw) for draw in DRAWS]
    for i, left in enumerate(masks):
        for j, right in enumerate(masks[:i]):
            assert abs(correlation(left, right, keep_prob)) < SIGMAS / math.sqrt(N), (DRAWS[i], DRAWS[j])


# 1: lanes; 64: halves of one word; 128: words of one Philox call; 512: tiles; the others mix them.
@pytest.mark.parametrize("lag", [1, 2, 8, 63, 64, 65, 128, 192, 448, 511, 512, 513, 4096])
def test_neighbours_are_independent(lag):
    for keep_prob in (0.3, 0.5):
        mask = mask_of(keep_prob, step=3)
        assert abs(correlation(mask[lag:], mask[:-lag], keep_prob)) < SIGMAS / math.sqrt(N - lag)


def test_every_row_and_lane_of_the_tile_has_the_rate():
    tiles = N // 512
    counts = native_mask(tiles * 512, 0.3).view(tiles, 512).sum(0).double()
    z = (counts - tiles * 0.3) / math.sqrt(tiles * 0.3 * 0.7)
    assert z.abs().max() < SIGMAS
    assert abs(float((z**2).sum()) - 512) < SIGMAS * math.sqrt(2 * 512)


@pytest.mark.parametrize(("keep_prob", "steps"), [(0.1, 240), (0.3, 64), (0.5, 40), (0.7, 24)])
def test_gaps_between_updates_are_geometric(keep_prob, steps):
    # Steps until the first update, and from it to the second, in one real training run over real steps.
    numel = 150_000
    param = torch.zeros(numel, requires_grad=True)
    param.grad = torch.ones(numel)
    optimizer = lrt.SGD([param], lr=1.0, keep_prob=keep_prob, seed=99)
    kept = torch.zeros(numel)
    first, second = (torch.zeros(numel, dtype=torch.int64) for _ in range(2))
    for step in range(1, steps + 1):
        optimizer.step()
        moved = -param.detach() > kept
        second[moved & (kept == 1)] = step
        first[moved & (kept == 0)] = step
        kept = -param.detach().clone()
    # A second update later than the window is missing with probability below 1e-6; none here at these sizes.
    assert (first > 0).all()
    gaps = second - first
    whole = second > 0
    assert whole.float().mean() > 1 - 1e-4
    for observed in (first, gaps[whole]):
        _assert_geometric(observed, keep_prob)


def _assert_geometric(gaps, keep_prob):
    n = gaps.numel()
    assert abs(float(gaps.double().mean()) - 1 / keep_prob) < SIGMAS * math.sqrt((1 - keep_prob) / keep_prob**2 / n)
    bins = int(math.log(100 / n) / math.log(1 - keep_prob))  # expected counts stay above about 100
    k = torch.arange(1, bins)
    expected = n * keep_prob * (1 - keep_prob) ** (k - 1).double()
    observed = torch.bincount(gaps, minlength=bins)[1:bins].double()
    expected = torch.cat([expected, (n - expected.sum()).reshape(1)])
    observed = torch.cat([observed, (n - observed.sum()).reshape(1)])
    chi_square, freedom = float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1
    assert chi_square < freedom + SIGMAS * math.sqrt(2 * freedom)
    assert chi_square > freedom - SIGMAS * math.sqrt(2 * freedom)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_within_64_steps_every_parameter_is_updated(backend):
    # Fails if the mask is drawn once, at initialisation: 2**-64 of the elements may be missed.
    params = [torch.zeros(shape, requires_grad=True) for shape in [(5000,), (17, 3), ()]]
    optimizer = lrt.RMSprop(params, lr=0.1, keep_prob=0.5, backend=backend)
    moved = [torch.zeros_like(param, dtype=torch.bool) for param in params]
    for _ in range(64):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        for seen, param, old in zip(moved, params, before, strict=True):
            seen |= param != old
    assert all(seen.all() for seen in moved)
