"""Schedules for the gradient weight, and those that the k-decay paper compares with: functions of the progress.

The k-decay family is in k_decay.py; lr.py and group.py apply them to an optimizer.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..optim.checks import check_count, check_range, plain
from ..step.keep import uniform
from .base import Decay, Schedule, check_finite, check_not_negative


@dataclass(frozen=True)
class linear(Decay):
    """s(r) = start + (end - start) r.

    Source: loss decay (Fig. 2a with start=2, Fig. 3a with start=3), where r = e / E and e counts epochs from 0.

    Args:
        start: value at progress 0.
        end: value at progress 1.

    Raises:
        ValueError, TypeError: an argument is not a finite number.
    """

    start: float = 2.0
    end: float = 0.0

    def _share(self, r: float) -> float:
        return 1 - r


@dataclass(frozen=True)
class constant(Schedule):
    """s(r) = value.

    Args:
        value: any finite number.

    Raises:
        ValueError, TypeError: value is not a finite number.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        """Checks the argument."""
        vars(self).update(value=check_finite("value", self.value))

    def bounds(self) -> tuple[float, float]:
        """The value, twice."""
        return self.value, self.value

    def _value(self, r: float) -> float:
        return float(self.value)


@dataclass(frozen=True)
class piecewise(Schedule):
    """s(r) = values[number of milestones <= r].

    Args:
        milestones: progress at which the next value starts, strictly increasing in (0, 1).
        values: one more than milestones.

    Raises:
        ValueError, TypeError: the milestones do not increase in (0, 1), or there are not as many values as they need.
    """

    milestones: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        """Checks the arguments and keeps them as tuples."""
        for name in ("milestones", "values"):
            given = plain(getattr(self, name))
            if not isinstance(given, Iterable) or isinstance(given, str):
                raise TypeError(f"Invalid {name}={given!r}: must be a sequence of floats")
            values = tuple(check_finite(f"{name}[{i}]", value) for i, value in enumerate(given))
            vars(self).update(**{name: values})
        edges = (0.0, *self.milestones, 1.0)
        if not all(left < right for left, right in pairwise(edges)):
            raise ValueError(f"Invalid milestones={self.milestones}: must be strictly increasing in (0, 1)")
        if len(self.values) != len(self.milestones) + 1:
            raise ValueError(f"Invalid values={self.values}: must be one more than milestones={self.milestones}")

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)

    def _value(self, r: float) -> float:
        return float(self.values[bisect_right(self.milestones, r)])


@dataclass(frozen=True)
class late(Schedule):
    """s(r) = high for r < start, else low (1 - r) / (1 - start).

    Source: the loss decay authors' code, whose only schedule it is: 1 until epoch 70 of 100, then 2/3 - e/150, that is
    a jump to 0.2 and a line to 0. They run it for 200 epochs too, where that expression turns negative; as a function
    of the progress it does not.

    Args:
        start: progress in [0, 1) at which the decay starts.
        high: value before.
        low: value at ``start``.

    Raises:
        ValueError, TypeError: an argument is not a finite number, or start is not in [0, 1).
    """

    start: float = 0.7
    high: float = 1.0
    low: float = 0.2

    def __post_init__(self) -> None:
        """Checks the arguments."""
        vars(self).update(**{name: check_finite(name, getattr(self, name)) for name in ("start", "high", "low")})
        check_range("start", self.start, 0.0, 1.0, "[)")

    def bounds(self) -> tuple[float, float]:
        """Of high, low and the final 0."""
        values = (self.low, 0.0, self.high) if self.start > 0 else (self.low, 0.0)
        return min(values), max(values)

    def _value(self, r: float) -> float:
        return float(self.high) if r < self.start else self.low * ((1 - r) / (1 - self.start))


@dataclass(frozen=True)
class long_tail(Decay):
    """s(r) = end + (start - end) (1 - r) / (1 + sharpness r).

    A fast fall and a long tail: half of the way is done at r = 1 / (2 + sharpness). Our formula, the paper gives none
    (loss decay, Fig. 3a, shows a curve only). It is 1 / (1 + sharpness r), brought to 1 at r = 0 and to 0 at r = 1.

    Args:
        start: value at progress 0.
        end: value at progress 1.
        sharpness: >= 0; 0 is a straight line.

    Raises:
        ValueError, TypeError: an argument is not a finite number, or sharpness is negative.
    """

    start: float = 3.0
    end: float = 0.0
    sharpness: float = 4.0

    def _check(self) -> None:
        vars(self).update(sharpness=check_not_negative("sharpness", self.sharpness))

    def _share(self, r: float) -> float:
        return (1 - r) / (1 + self.sharpness * r)


@dataclass(frozen=True)
class trapezoid(Schedule):
    """A line from start to high over [0, rise], high until fall, a line from high to end over [fall, 1].

    Source: Xing et al., A Walk with SGD, arXiv 1802.08770. The defaults are the LOSSGRAD paper's: epochs 10, 15 of 30.

    Args:
        start: value at progress 0, unless rise is 0.
        high: value from ``rise`` to ``fall``.
        end: value at progress 1, unless fall is 1.
        rise: progress in [0, 1] at which ``high`` is reached; 0: at once.
        fall: progress in [rise, 1] at which it is left; 1: never.

    Raises:
        ValueError, TypeError: an argument is not a finite number, or 0 <= rise <= fall <= 1 does not hold.
    """

    start: float = 0.0
    high: float = 1.0
    end: float = 0.0
    rise: float = 1 / 3
    fall: float = 1 / 2

    def __post_init__(self) -> None:
        """Checks the arguments."""
        names = ("start", "high", "end", "rise", "fall")
        vars(self).update(**{name: check_finite(name, getattr(self, name)) for name in names})
        check_range("rise", self.rise, 0.0, 1.0)
        check_range("fall", self.fall, self.rise, 1.0)

    def bounds(self) -> tuple[float, float]:
        """Of those of start, high and end that are reached."""
        values = [self.high, *[self.start] * (self.rise > 0), *[self.end] * (self.fall < 1)]
        return min(values), max(values)

    def _value(self, r: float) -> float:
        if r < self.rise:
            return linear(self.start, self.high)(r / self.rise)
        if r <= self.fall:
            return float(self.high)
        return linear(self.high, self.end)((r - self.fall) / (1 - self.fall))


@dataclass(frozen=True)
class tanh_decay(Decay):
    """s(r) = end + (start - end) (1 - tanh(lower (1 - r) + upper r)) / 2.

    Hyperbolic-tangent decay (HTD). Its ends are approached, not reached: with the defaults 6e-6 of the way
    is done at r = 0, and 0.25 % is left at r = 1.

    Source: Hsueh et al., SGD with Hyperbolic-Tangent Decay on Classification, WACV 2019, with their usual (-6, 3); timm
    has (-7, 3).

    Args:
        start, end: values that are approached at both ends.
        lower: argument of tanh at progress 0.
        upper: argument of tanh at progress 1, > lower.

    Raises:
        ValueError, TypeError: an argument is not a finite number, or upper <= lower.
    """

    lower: float = -6.0
    upper: float = 3.0

    def _check(self) -> None:
        vars(self).update(lower=check_finite("lower", self.lower), upper=check_finite("upper", self.upper))
        if self.upper <= self.lower:
            raise ValueError(f"Invalid upper={self.upper}: must be > lower={self.lower}")

    def _share(self, r: float) -> float:
        return (1 - math.tanh(self.lower * (1 - r) + self.upper * r)) / 2


@dataclass(frozen=True)
class random_gradient:
    """s = u with probability ``probability``, else 1; u ~ U[0, 1), one number per step for all parameters.

    Depends on the step and not on the progress. The draws are those of :func:`lrtricks_fused.step.keep.uniform`: the
    same on every rank, and after a resume.

    Source: random gradient (Wei). The authors draw per batch: always for classification, with probability 1/2 for
    segmentation.

    Args:
        seed: in [0, 2**64).
        probability: in [0, 1]; of a step being weighted.

    Raises:
        ValueError, TypeError: seed or probability is out of range.
    """

    seed: int = 0
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        seed, probability = check_count("seed", self.seed, 0), check_finite("probability", self.probability)
        if seed >= 2**64:
            raise ValueError(f"Invalid seed={seed}: must be < 2**64")
        check_range("probability", probability, 0.0, 1.0)
        vars(self).update(seed=seed, probability=probability)

    def bounds(self) -> tuple[float, float]:
        """Of U[0, 1) and 1."""
        return 0.0, 1.0

    def at_step(self, step: int) -> float:
        """The weight of the ``step``-th step, 1 at the first one.

        Raises:
            ValueError, TypeError: step is not an int >= 0.
        """
        step = check_count("step", step, 0)
        weighted = uniform(self.seed, step, word=1) < self.probability
        return uniform(self.seed, step) if weighted else 1.0
