"""The k-decay family as functions of the progress r = t / T; lr.py makes learning rate schedulers of them.

Source of all: Zhang and Li, k-decay: A New Method For Learning Rate Schedule, arXiv 2004.05909, Eqs. 11 to 14.
With k = 1 each is its base schedule; a larger k keeps the value high for longer; the paper advises 1 < k <= 2.
Written as (t/T)**k and not as t**k / T**k, which overflows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..optim.checks import plain
from .base import Decay, check_not_negative, check_positive


@dataclass(frozen=True)
class polynomial_k_decay(Decay):
    """s(r) = (start - end) (1 - r^k)^power + end (Eq. 11; Eq. 10 with power 1).

    Args:
        start: value at progress 0.
        end: value at progress 1; with power 0 the value is ``start`` throughout.
        k: > 0; below 1 the slope at 0 is infinite.
        power: >= 0, the paper's N.

    Raises:
        ValueError, TypeError: an argument is not a finite number, k <= 0 or power < 0.
    """

    k: float = 1.5
    power: float = 1.0

    def _check(self) -> None:
        vars(self).update(k=check_positive("k", self.k), power=check_not_negative("power", self.power))

    def _share(self, r: float) -> float:
        return (1 - r**self.k) ** self.power


@dataclass(frozen=True)
class cosine_k_decay(Decay):
    """s(r) = (start - end) (1 + cos(pi r^k)) / 2 + end (Eq. 12).

    Args:
        start: value at progress 0.
        end: value at progress 1.
        k: > 0.

    Raises:
        ValueError, TypeError: an argument is not a finite number, or k <= 0.
    """

    k: float = 1.5

    def _check(self) -> None:
        vars(self).update(k=check_positive("k", self.k))

    def _share(self, r: float) -> float:
        return (1 + math.cos(math.pi * r**self.k)) / 2


@dataclass(frozen=True)
class exponential_k_decay(Decay):
    """s(r) = (start - end) (exp(-r^k) - 1/e) / (1 - 1/e) + end (Eq. 13, its two terms collected).

    Args:
        start: value at progress 0.
        end: value at progress 1.
        k: > 0.

    Raises:
        ValueError, TypeError: an argument is not a finite number, or k <= 0.
    """

    k: float = 1.5

    def _check(self) -> None:
        vars(self).update(k=check_positive("k", self.k))

    def _share(self, r: float) -> float:
        return (math.exp(-(r**self.k)) - math.exp(-1)) / (1 - math.exp(-1))


@dataclass(frozen=True)
class multi_k_decay(Decay):
    """s(r) = (start - end) (1 - (1/n) sum_j r^ks[j])^power + end (Eq. 14).

    Args:
        start: value at progress 0.
        end: value at progress 1; with power 0 the value is ``start`` throughout.
        ks: one or more numbers > 0, in any order.
        power: >= 0, the paper's N.

    Raises:
        ValueError, TypeError: an argument is not a finite number, ks is empty or holds one <= 0, or power < 0.
    """

    ks: Sequence[float] = (1.0, 2.0)
    power: float = 1.0

    def _check(self) -> None:
        ks = plain(self.ks)
        if not isinstance(ks, (list, tuple)) or not ks:
            raise ValueError(f"Invalid ks={self.ks!r}: must be one or more floats")
        ks = tuple(check_positive(f"ks[{i}]", k) for i, k in enumerate(ks))  # frozen, also against the caller's list
        vars(self).update(ks=ks, power=check_not_negative("power", self.power))

    def _share(self, r: float) -> float:
        return (1 - sum(r**k for k in self.ks) / len(self.ks)) ** self.power
