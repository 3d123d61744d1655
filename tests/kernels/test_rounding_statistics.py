"""Are the bits that round stochastically uniform, and independent of operand, element and step (docs/keep-bits.md)?

And of those that decide whether elements are kept, of which they are made. All bounds are 5 sigma of the exact
distribution; the draws are fixed, so a pass today is a pass for ever.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from inventory import FULL
from sympy import ZZ
from sympy.polys.matrices import DomainMatrix

import lrtricks_fused as lrt
from lrtricks_fused.step.keep import LANES, TILE, keep_bits, keep_threshold
from lrtricks_fused.step.rounding import PARAM_MULTIPLIER, STATE_MULTIPLIERS, rounding_bits, rounding_words

TILES = 2**14 if FULL else 2**11  # 256 words of two elements each
CELLS = (16, 256, 1024) if FULL else (16, 256)  # for each of a pair
SIGMAS = 5.0
OPERANDS = {"param": PARAM_MULTIPLIER, **{f"state {k}": m for k, m in enumerate(STATE_MULTIPLIERS)}}
NUMBERS = {"keep": 0, **OPERANDS}  # an element's 16 bits, by what the other's are multiplied by
BF16 = torch.bfloat16
DRAWS = {"the step before": dict(step=1), "another parameter": dict(param=1), "another seed": dict(seed=1)}
LAGS = {"lane": 1, "next word's row": 2 * LANES, "tile": TILE}


def words_of(seed=0, step=2, param=0):
    """The words of the elements of all tiles, by row and lane."""
    words = rounding_words(torch.empty(TILES * TILE), seed, step, param, None).numpy()
    return words.reshape(TILES, TILE // LANES, LANES)


def bits(words, multiplier):
    """An operand's 16 bits of each word, as the kernels have them."""
    return rounding_bits(torch.from_numpy(np.ascontiguousarray(words)), multiplier).numpy().ravel()


@pytest.fixture(scope="module")
def of_pairs():
    """By number and element of the pair that shares a word: the bits of all pairs."""
    words = words_of()
    return {(name, side): bits(words[:, side::2], multiplier)
            for name, multiplier in NUMBERS.items() for side in (0, 1)}  # fmt: skip


def in_sigmas(columns, cells):
    """How far the counts of the columns' upper bits, ``cells`` for each, are from equal: chi-square, as a normal."""
    index = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        index = index * cells + (column >> (16 - cells.bit_length() + 1))
    counts = np.bincount(index, minlength=cells ** len(columns))
    expected = len(index) / len(counts)
    freedom = len(counts) - 1
    assert expected >= 4  # or the normal distribution would be far
    return (float(((counts - expected) ** 2).sum()) / expected - freedom) / math.sqrt(2 * freedom)


def correlation(left, right):
    """Sample correlation in sigmas, of numbers whose mean and variance are known."""
    centre, variance = (2**16 - 1) / 2, (2**32 - 1) / 12
    return float(((left - centre) * (right - centre)).mean()) / variance * math.sqrt(len(left))


def test_two_elements_share_a_word():
    even, odd = (words_of()[:, side::2] for side in (0, 1))
    assert (even == ((odd << 16 | odd >> 16) & 0xFFFFFFFF)).all()


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("given", ["own", "other"])
def test_each_number_of_16_bits_comes_up_once(operand, given):
    """Whatever half a word is, an operand's bits are a permutation of the other half.

    So they are uniform, exactly: of an element that is kept, and of one whose partner is.
    """
    free = torch.arange(2**16)
    for half in (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x9E37):
        words = half << 16 | free if given == "own" else free << 16 | half
        assert (rounding_bits(words, OPERANDS[operand]).bincount(minlength=2**16) == 1).all()


def shortest_relation(numbers):
    """Euclidean length of the shortest integers h, not all 0, of which sum(h * number) is 0 mod 2**16 for all words.

    Knuth's spectral test (The Art of Computer Programming, 3.3.4), of numbers by their factors of the two halves; as
    short as LLL finds it.
    """
    scale, count = 2**24, len(numbers)  # of what must vanish: more than any h
    rows = [[int(i == k) for k in range(count)] + [scale * factor for factor in numbers[i]] for i in range(count)]
    rows += [[0] * count + [scale << 16, 0], [0] * count + [0, scale << 16]]
    basis = DomainMatrix([list(map(ZZ, row)) for row in rows], (count + 2, count + 2), ZZ).lll().to_list()
    return math.sqrt(min(sum(int(h) ** 2 for h in row[:count]) for row in basis if not any(row[count:])))


@pytest.mark.parametrize(("count", "least"), [(2, 5792), (3, 128), (4, 24), (5, 13)])
def test_numbers_of_a_word_lie_on_no_few_planes(count, least):
    """What such a relation tells of the upper bits of numbers is next to nothing."""
    factors = [(1, multiplier) for multiplier in NUMBERS.values()]
    factors += [(other, own) for own, other in factors]
    assert all(shortest_relation(chosen) > least for chosen in itertools.combinations(factors, count))
    assert shortest_relation([(k, 3 * k) for k in range(1, count + 1)]) < least  # it can fail


def test_bits_are_uniform(of_pairs):
    for name, column in of_pairs.items():
        assert abs(in_sigmas([column], 256)) < SIGMAS, name
        assert abs(in_sigmas([(column & 0xFF) << 8], 256)) < SIGMAS, name  # the lower ones


def test_any_two_of_a_word_are_independent(of_pairs):
    """What decides about an element and rounds its operands, and those of the two elements that share a word."""
    for first, second in itertools.combinations(of_pairs, 2):
        columns = [of_pairs[first], of_pairs[second]]
        assert abs(correlation(*columns)) < SIGMAS, (first, second)
        for cells in CELLS:
            assert abs(in_sigmas(columns, cells)) < SIGMAS, (first, second)
        low = [(column & 0xFF) << 8 for column in columns]
        assert abs(in_sigmas(low, 16)) < SIGMAS, (first, second)


def test_any_three_of_a_word_are_independent(of_pairs):
    for names in itertools.combinations(of_pairs, 3):
        assert abs(in_sigmas([of_pairs[name] for name in names], 32)) < SIGMAS, names


@pytest.mark.parametrize("other", DRAWS)
def test_steps_parameters_and_seeds_are_independent(other):
    here, there = words_of(), words_of(**DRAWS[other])
    pairs = itertools.product(OPERANDS, repeat=2) if FULL else zip(OPERANDS, OPERANDS, strict=True)
    for left, right in pairs:
        columns = [bits(here, OPERANDS[left]), bits(there, OPERANDS[right])]
        assert abs(correlation(*columns)) < SIGMAS, (left, right)
        for cells in CELLS:
            assert abs(in_sigmas(columns, cells)) < SIGMAS, (left, right)


@pytest.mark.parametrize("lag", LAGS)
def test_neighbours_are_independent(lag):
    words = words_of().ravel()
    here, there = words[: -LAGS[lag]], words[LAGS[lag] :]
    pairs = itertools.product(OPERANDS, repeat=2) if FULL else zip(OPERANDS, OPERANDS, strict=True)
    for left, right in pairs:
        columns = [bits(here, OPERANDS[left]), bits(there, OPERANDS[right])]
        assert abs(correlation(*columns)) < SIGMAS, (left, right)
        assert abs(in_sigmas(columns, 256)) < SIGMAS, (left, right)


def test_the_words_are_those_that_decide(of_pairs):
    own = keep_bits(TILES * TILE, 0, 2, 0).numpy().reshape(TILES, -1, LANES)
    assert all((own[:, side::2].ravel() == of_pairs["keep", side]).all() for side in (0, 1))


# -- what comes of it, by the kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_prob", [1.0, 0.5, 0.1])
def test_a_parameter_walks_as_far_as_it_is_told(keep_prob):
    """Steps of 1/64 ulp: how many of 64 move an element is binomial, and none is rounded to nearest.

    Also under a mask, by whose words it is rounded, and of two elements that share their words independently.
    """
    numel, steps, part = 2**18 if FULL else 2**16, 64, 64
    ulp, chance = 2.0**-7, keep_threshold(keep_prob) / 65536 / part
    param = torch.ones(numel, dtype=BF16).requires_grad_()
    param.grad = -torch.ones(numel, dtype=BF16)
    optimizer = lrt.SGD([param], lr=ulp / part, keep_prob=keep_prob, rounding="stochastic", backend="native")
    for _ in range(steps):
        optimizer.step()
    moves = ((param.detach().double() - 1) / ulp).long()
    deviation = math.sqrt(steps * chance * (1 - chance))
    assert abs(float(moves.double().mean()) - steps * chance) < SIGMAS * deviation / math.sqrt(numel)
    expected = torch.tensor([math.comb(steps, k) * chance**k * (1 - chance) ** (steps - k) for k in range(6)]).double()
    expected = numel * expected[: 6 if keep_prob == 1.0 else 3]  # of what comes up often
    counts = moves.bincount(minlength=6)[: len(expected)].double()
    freedom = len(expected)  # a rest, of some 1 in 2,000 without a mask, is left out
    assert float(((counts - expected) ** 2 / expected).sum()) < freedom + SIGMAS * math.sqrt(2 * freedom)
    first, second = ((moves.view(-1, 2, LANES)[:, side] - steps * chance).double() / deviation for side in (0, 1))
    assert abs(float((first * second).mean())) < SIGMAS / math.sqrt(numel / 2)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_states_follow_on_average(dtype):
    """exp_avg and exp_avg_sq are linear in what they were: unbiased rounding leaves their means exact."""
    numel, steps = 2**18 if FULL else 2**16, 100
    param = torch.ones(numel, dtype=dtype).requires_grad_()
    optimizer = lrt.Adam([param], lr=0.0, state_dtype=BF16, state_rounding="stochastic", backend="native")
    exact = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    for step in range(steps):
        grad = float(torch.tensor(1.0 if step < 20 else 0.3 * (step % 3)).to(BF16))
        param.grad = torch.full((numel,), grad, dtype=dtype)
        optimizer.step()
        exact = {"exp_avg": 0.9 * exact["exp_avg"] + 0.1 * grad,
                 "exp_avg_sq": 0.999 * exact["exp_avg_sq"] + 0.001 * grad**2}  # fmt: skip
    errors = {}
    for name, mean in exact.items():
        state = optimizer.state[param][name].double()
        errors[name] = state - mean
        # 1e-7: the roundings of 100 steps of float32, which are the same of all elements.
        assert abs(float(errors[name].mean())) < SIGMAS * float(state.std()) / math.sqrt(numel) + 1e-7 * mean
        assert float(state.std()) > 1e-4 * mean  # it has been rounded
    normed = [(error - error.mean()) / error.std() for error in errors.values()]
    assert abs(float((normed[0] * normed[1]).mean())) < SIGMAS / math.sqrt(numel)
