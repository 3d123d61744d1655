"""Drop-in PyTorch optimizers whose fused step contains learning-rate tricks."""

from . import schedules
from .optim import SGD, AdaBelief, Adam, AdamW, RAdam, RMSprop
from .schedules import *  # noqa: F403

__all__ = ["SGD", "AdaBelief", "Adam", "AdamW", "RAdam", "RMSprop", *schedules.__all__]
__version__ = "0.1.0"
