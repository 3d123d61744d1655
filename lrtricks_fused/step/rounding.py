"""How float32 becomes what is stored, in plain tensor operations: stochastic rounding, and split masters.

Stochastic rounding draws nothing of its own. Philox gives two elements a word, a number of 16 bits for each, by which
it is decided whether they are kept (keep.py). Of an element's own number and the other's

    bits = own + a * other mod 2**16,    with an odd a for the parameter, and one for the k-th state,

are 16 bits more: uniform whatever the element's own number is, exactly, so that rounding is unbiased whether it is kept
or not. How far they are independent of each other: docs/keep-bits.md.
"""

import torch
from torch import Tensor

from .keep import IndexMap, draws

# Odd; the best in the spectral test, tests/kernels/test_rounding_statistics.py, of some minutes' random search.
PARAM_MULTIPLIER, STATE_MULTIPLIERS = 0x4AB5, (0x352B, 0x4F9B, 0x3DAD)
HALF_MIN = 2.0**-14  # the smallest normal float16


def rounding_words(like: Tensor, seed: int, step: int | Tensor, param: int, index_map: IndexMap | None) -> Tensor:
    """The word that rounds each element of ``like``, its own half on top, as an int64 tensor of its shape."""
    return draws(like.numel(), seed, step, param, like.device, index_map).view(like.shape)


def rounding_bits(words: Tensor, multiplier: int) -> Tensor:
    """16 bits of each word: its upper half, an element's own number, plus ``multiplier`` times its lower half."""
    return (words >> 16) + words * multiplier & 0xFFFF


def stochastically_rounded(values: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    r"""float32 ``values`` as bfloat16 or float16, up or down by ``bits``, which are uniform in [0, 2**16).

    .. math:: P(\text{away from zero}) = \frac{|x| - \lfloor |x| \rfloor}{\mathrm{ulp}}

    exactly for bfloat16 and for normal float16, whose numbers lose 16 and 13 bits; of subnormal float16, which lose
    more, to 2**-16. What is exact stays as it is, and a NaN is one.
    """
    words = values.view(torch.int32).long() & 0xFFFFFFFF
    sign, magnitude = words & 0x80000000, words & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        rounded = magnitude + bits >> 16
        nan = 0x7FC0
    else:
        normal = (magnitude + (bits >> 3) - ((127 - 15) << 23) >> 13).clamp(max=0x7C00)
        small = values.abs().clamp(max=HALF_MIN) * 2.0**40  # in units of 2**-16 of the smallest subnormal
        subnormal = small.long() + bits >> 16
        rounded = torch.where(values.abs() < HALF_MIN, subnormal, normal)
        nan = 0x7E00
    signed = torch.where(values.isnan(), nan, rounded | sign >> 16)
    return _as_16_bits(signed).view(dtype)


def _as_16_bits(words: Tensor) -> Tensor:
    """The low 16 bits of integers."""
    return ((words & 0xFFFF ^ 0x8000) - 0x8000).to(torch.int16)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 master as bfloat16, rounded half away from zero, and the int16 that completes it.

    bits(master) = (bits(param) << 16) + low. Ties go one way, because of two float32 that share a neighbour in bfloat16
    the same ``low`` could not tell. A NaN is quiet in both, and may lose a bit of its payload.
    """
    words = master.view(torch.int32).long() & 0xFFFFFFFF
    words = torch.where(master.isnan(), (words | 0x400000) & 0xFFFF7FFF, words)
    high = words + 0x8000 >> 16
    return _as_16_bits(high).view(torch.bfloat16), (words - (high << 16)).to(torch.int16)


def joined(param: Tensor, low: Tensor) -> Tensor:
    """The float32 master of a bfloat16 parameter, see :func:`split`."""
    words = (param.view(torch.int16).long() << 16) + low.long()
    return ((words & 0xFFFFFFFF ^ 0x80000000) - 0x80000000).to(torch.int32).view(torch.float32)
