"""How stable a network is while its learning rate decays."""

from .probe import StabilityProbe, StabilitySnapshot
from .report import StabilityReport

__all__ = ["StabilityProbe", "StabilityReport", "StabilitySnapshot"]
