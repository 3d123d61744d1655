"""What all schedules share: progress clamped to [0, 1], a way between two values, checks of arguments.

A schedule is called with the progress and returns the value. It may also define ``bounds()``, the least and the
greatest value it ever takes, and ``at_step(step)``, for one that depends on the count of steps instead.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..optim.checks import check_real


def between(start: float | Tensor, end: float | Tensor, share: float) -> float | Tensor:
    """Value = share start + (1 - share) end: exactly ``start`` at share 1 and exactly ``end`` at share 0."""
    if share > 0.5:  # from the nearer side, so that both ends are exact
        return start - (start - end) * (1 - share)
    return end + (start - end) * share


def check_finite(name: str, value: Any) -> float:
    """As :func:`check_real`, and raises ValueError unless it is finite."""
    number = check_real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"Invalid {name}={number}: must be finite")
    return number


def check_positive(name: str, value: Any) -> float:
    """As :func:`check_finite`, and raises ValueError unless value > 0."""
    number = check_finite(name, value)
    if number <= 0:
        raise ValueError(f"Invalid {name}={number}: must be > 0")
    return number


def check_not_negative(name: str, value: Any) -> float:
    """As :func:`check_finite`, and raises ValueError unless value >= 0."""
    number = check_finite(name, value)
    if number < 0:
        raise ValueError(f"Invalid {name}={number}: must be >= 0")
    return number


class Schedule:
    """A function of the progress r in [0, 1]; outside it keeps its value at the nearer end.

    Instances are immutable, compare by their arguments and can be pickled.
    """

    def __call__(self, progress: float) -> float:
        """The value at ``progress``.

        Raises:
            ValueError, TypeError: progress is NaN, or no number.
        """
        progress = check_real("progress", progress)
        if math.isnan(progress):
            raise ValueError(f"Invalid progress={progress}: must be a number")
        return self._value(min(max(float(progress), 0.0), 1.0))

    def bounds(self) -> tuple[float, float]:
        """Two numbers that no value lies below and above, each of them reached or approached."""
        raise NotImplementedError

    def _value(self, r: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Decay(Schedule):
    """A schedule from ``start`` to ``end``; subclasses say which share of the way is still ahead."""

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        """Checks both ends, then what the subclass adds."""
        vars(self).update(start=check_finite("start", self.start), end=check_finite("end", self.end))
        if not math.isfinite(self.start - self.end):
            raise ValueError(f"Invalid start={self.start}, end={self.end}: must have a finite difference")
        self._check()

    def bounds(self) -> tuple[float, float]:
        """The lower and the higher end: all decays are monotone."""
        first, last = self(0.0), self(1.0)
        return min(first, last), max(first, last)

    def _value(self, r: float) -> float:
        return float(between(self.start, self.end, self._share(r)))

    def _check(self) -> None:
        """Raises for arguments that only the subclass has, and makes plain numbers of them."""

    def _share(self, r: float) -> float:
        """The share of start - end that is left at progress r: a number in [0, 1]."""
        raise NotImplementedError
