"""The keep decision in plain tensor operations: the specification of the random bits (version 1, frozen).

Philox4x32-7 (Salmon et al., SC 2011) with key = seed and counter = (n, n_high | stream << 24, step, param).
Element i of a parameter, in row-major order, draws 16 bits: tile = i // 512, row = i // 64 % 8, lane = i % 64,
n = tile * 64 + lane, bits = word[row // 2] >> 16 * (row % 2) & 0xffff. It is kept iff bits < threshold.
Streams: 0 for the elements, 3 for numbers of which a step needs one (:func:`uniform`).
An element of a shard draws as the element of the whole parameter that it is (:class:`IndexMap`).
"""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

LANES = 64
TILE = 512
ROUNDS = 7  # the fewest that pass BigCrush
ELEMENTS, SCALARS = 0, 3  # streams
_MASK32 = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
MAX_ELEMENTS = 2**59  # of a whole parameter: its Philox calls are numbered by 56 bits


class IndexMap(NamedTuple):
    """Which elements of a whole parameter a shard of it holds, both in row-major order.

    element(i) = base + i // run * pitch + i % run

    Attributes:
        base: the element of the whole parameter that the shard's first one is.
        run: how many elements follow each other there.
        pitch: from the beginning of one run to that of the next; of no effect where there is one.
    """

    base: int
    run: int
    pitch: int

    def check(self, numel: int) -> None:
        """Raises ValueError unless this is a map of a shard of ``numel`` elements, each from an element of its own."""
        last = (numel - 1) // max(self.run, 1)  # the last run's number
        if self.run < 1 or self.base < 0 or (last > 0 and self.pitch < self.run):
            rule = "must have base >= 0, run >= 1, and pitch >= run where there is more than one run"
            raise ValueError(f"Invalid index map {tuple(self)} of {numel} elements: {rule}")
        if self.base + max(last, 0) * self.pitch + min(self.run, numel) > MAX_ELEMENTS:
            raise ValueError(f"Invalid index map {tuple(self)} of {numel} elements: must stay below element 2**59")

    def elements(self, numel: int, device: torch.device | str = "cpu") -> Tensor:
        """The elements of the whole parameter that the shard's first ``numel`` ones are, as an int64 tensor."""
        return self.element(torch.arange(numel, device=device))

    def element(self, i: Word) -> Word:
        """The element of the whole parameter that the shard's ``i``-th one is, of an int or an int64 tensor."""
        return self.base + i // self.run * self.pitch + i % self.run


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


def _rows(n: Tensor, seed: int, step: int | Tensor, param: int) -> list[Tensor]:
    """What the Philox calls ``n`` give to each of the eight rows of a tile: a word, its own half of it on top."""
    steps = torch.zeros_like(n) + (step.long() if isinstance(step, Tensor) else step & _MASK32) & _MASK32
    counter = (n & _MASK32, n >> 32 | ELEMENTS << 24, steps, torch.full_like(n, param))
    words = philox4x32(counter, seed)
    return [half for word in words for half in ((word << 16 | word >> 16) & _MASK32, word)]


def draws(
    numel: int,
    seed: int,
    step: int | Tensor,
    param: int,
    device: torch.device | str,
    index_map: IndexMap | None,
) -> Tensor:
    """32 bits for each of the elements 0 .. numel-1, or of those that a shard's are, as an int64 tensor (numel,).

    The upper 16 are an element's own, the lower ones those of the element 64 before or after it.

    Raises:
        ValueError: the index map is not one of a shard of ``numel`` elements.
    """
    if index_map is None:
        tiles = -(-numel // TILE)
        rows = _rows(torch.arange(tiles * LANES, device=device), seed, step, param)
        return torch.stack([row.view(tiles, LANES) for row in rows], dim=1).flatten()[:numel]
    index_map.check(numel)
    elements = index_map.elements(numel, device)
    rows = _rows(elements // TILE * LANES + elements % LANES, seed, step, param)
    return torch.stack(rows).gather(0, (elements // LANES % len(rows)).unsqueeze(0)).squeeze(0)


def keep_bits(
    numel: int,
    seed: int,
    step: int | Tensor,
    param: int,
    device: torch.device | str = "cpu",
    index_map: IndexMap | None = None,
) -> Tensor:
    """The 16-bit draws of elements 0 .. numel-1, or of those that a shard's are, as an int64 tensor of shape (numel,).

    Raises:
        ValueError: the index map is not one of a shard of ``numel`` elements.
    """
    return draws(numel, seed, step, param, device, index_map) >> 16


def keep_mask(
    shape: torch.Size,
    keep_prob: float,
    seed: int,
    step: int,
    param: int,
    device: torch.device | str = "cpu",
    index_map: IndexMap | None = None,
) -> Tensor:
    """Boolean mask of one parameter's step: True where the element is updated.

    Args:
        shape: shape of the parameter, or of the shard of it that this process holds.
        keep_prob: probability in [0, 1] that an element is updated.
        seed: 64-bit seed.
        step: the parameter's step count, 1 at its first update.
        param: the parameter's identity, below 2**32.
        device: where to compute and return it.
        index_map: which elements of the whole parameter a shard holds; None: it is the whole.

    Raises:
        ValueError: the index map is not one of a shard of this shape.
    """
    threshold = keep_threshold(keep_prob)
    if threshold in (0, 65536):
        return torch.full(shape, threshold != 0, device=device)
    return (keep_bits(shape.numel(), seed, step, param, device, index_map) < threshold).view(shape)


def drawn_mask(
    param: Tensor, keep_prob: float | Tensor, seed: int, step: Tensor, identity: int, index_map: IndexMap | None
) -> Tensor:
    """:func:`keep_mask` of a parameter, of whose step and keep_prob nothing is read where they are on a device."""
    if not isinstance(keep_prob, Tensor) or keep_prob.is_cpu:
        threshold = keep_threshold(float(keep_prob))
        if threshold in (0, 65536):
            return torch.full(param.shape, threshold != 0, device=param.device)
        return (keep_bits(param.numel(), seed, step, identity, param.device, index_map) < threshold).view(param.shape)
    prob = keep_prob.to(param.device, torch.float64).reshape(())
    thresholds = (prob * 65536).round().clamp(1, 65535)
    thresholds = torch.where(prob <= 0, 0.0, torch.where(prob >= 1, 65536.0, thresholds))
    return (keep_bits(param.numel(), seed, step, identity, param.device, index_map) < thresholds).view(param.shape)


def uniform(seed: int, step: int, param: int = 0, word: int = 0) -> float:
    """A number in [0, 1) per step: word / 2**32 of the Philox words at counter (0, 3 << 24, step, param).

    Args:
        seed: 64-bit seed.
        step: 1 at the first one; its low 32 bits count.
        param: below 2**32; numbers of different ``param`` are independent.
        word: 0 to 3; so are those of different words.
    """
    return philox4x32((0, SCALARS << 24, step & _MASK32, param), seed)[word] / 2**32
