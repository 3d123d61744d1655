"""Drop-in PyTorch optimizers whose fused step contains learning-rate tricks."""

from . import schedules
from .baselines import L4Adam, L4Mom, WNGrad
from .lossgrad import LossGrad, frozen_statistics
from .optim import SGD, AdaBelief, Adam, AdamW, RAdam, RMSprop
from .schedules import *  # noqa: F403
from .stability import StabilityProbe, StabilitySnapshot
from .stability_report import StabilityReport
from .subnetworks import SubnetworkLR, layer_groups

__all__ = [
    "SGD", "AdaBelief", "Adam", "AdamW", "L4Adam", "L4Mom", "LossGrad", "RAdam", "RMSprop", "StabilityProbe",
    "StabilityReport", "StabilitySnapshot", "SubnetworkLR", "WNGrad", "frozen_statistics", "layer_groups",
    *schedules.__all__,
]  # fmt: skip
__version__ = "0.1.0"
