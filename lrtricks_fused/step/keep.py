"""The keep decision in plain tensor operations: the specification of the random bits (version 1, frozen).

Philox4x32-7 (Salmon et al., SC 2011) with key = seed and counter = (n, n_high | stream << 24, step, param).
Element i of a parameter, in row-major order, draws 16 bits: tile = i // 512, row = i // 64 % 8, lane = i % 64,
n = tile * 64 + lane, bits = word[row // 2] >> 16 * (row % 2) & 0xffff. It is kept iff bits < threshold.
Streams: 0 for the elements, 3 for numbers of which a step needs one (:func:`uniform`).
"""

from typing import TypeVar

import torch
from torch import Tensor

LANES = 64
TILE = 512
ROUNDS = 7  # the fewest that pass BigCrush
SCALARS = 3
_MASK32 = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(
    counter: tuple[Word, Word, Word, Word], seed: int, rounds: int = ROUNDS
) -> tuple[Word, Word, Word, Word]:
    """Philox4x32 of ints or int64 tensors that hold 32-bit words; returns four such."""
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _MASK32, seed >> 32 & _MASK32
    for _ in range(rounds):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # of tensors modulo 2**64, all that is needed
        c0, c2 = product1 >> 32 & _MASK32 ^ c1 ^ key0, product0 >> 32 & _MASK32 ^ c3 ^ key1
        c1, c3 = product1 & _MASK32, product0 & _MASK32
        key0, key1 = key0 + _WEYL[0] & _MASK32, key1 + _WEYL[1] & _MASK32
    return c0, c1, c2, c3


def keep_threshold(keep_prob: float) -> int:
    """T such that an element is kept iff its 16 bits are below T: 0 for 0, 65536 for 1, else in [1, 65535]."""
    if keep_prob <= 0:
        return 0
    if keep_prob >= 1:
        return 65536
    return min(max(round(keep_prob * 65536), 1), 65535)


def keep_bits(numel: int, seed: int, step: int, param: int, device: torch.device | str = "cpu") -> Tensor:
    """The 16-bit draws of elements 0 .. numel-1, as an int64 tensor of shape (numel,)."""
    tiles = -(-numel // TILE)
    n = torch.arange(tiles * LANES, device=device)
    full = torch.full_like
    words = philox4x32((n & _MASK32, n >> 32, full(n, step & _MASK32), full(n, param)), seed)
    rows = [words[row // 2].view(tiles, LANES) >> 16 * (row % 2) & 0xFFFF for row in range(TILE // LANES)]
    return torch.stack(rows, dim=1).flatten()[:numel]


def keep_mask(
    shape: torch.Size, keep_prob: float, seed: int, step: int, param: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Boolean mask of one parameter's step: True where the element is updated.

    Args:
        shape: shape of the parameter.
        keep_prob: probability in [0, 1] that an element is updated.
        seed: 64-bit seed.
        step: the parameter's step count, 1 at its first update.
        param: index of the parameter in ``optimizer.state_dict()`` order.
        device: where to compute and return it.
    """
    threshold = keep_threshold(keep_prob)
    if threshold in (0, 65536):
        return torch.full(shape, threshold != 0, device=device)
    return (keep_bits(shape.numel(), seed, step, param, device) < threshold).view(shape)


def uniform(seed: int, step: int, param: int = 0, word: int = 0) -> float:
    """A number in [0, 1) per step: word / 2**32 of the Philox words at counter (0, 3 << 24, step, param).

    Args:
        seed: 64-bit seed.
        step: 1 at the first one; its low 32 bits count.
        param: below 2**32; numbers of different ``param`` are independent.
        word: 0 to 3; so are those of different words.
    """
    return philox4x32((0, SCALARS << 24, step & _MASK32, param), seed)[word] / 2**32
