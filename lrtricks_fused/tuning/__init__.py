"""Step sizes that tune themselves."""

from .baselines import L4Adam, L4Mom, WNGrad
from .lossgrad import LossGrad, frozen_statistics

__all__ = ["L4Adam", "L4Mom", "LossGrad", "WNGrad", "frozen_statistics"]
