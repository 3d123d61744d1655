"""Drop-in PyTorch optimizers whose fused step contains learning-rate tricks."""

from . import optim, schedules, stability, tuning
from .optim import *  # noqa: F403
from .optim.changes import Changes, apply_changes
from .optim.in_backward import step_in_backward
from .schedules import *  # noqa: F403
from .stability import *  # noqa: F403
from .tuning import *  # noqa: F403

__all__ = [
    *optim.__all__,
    *schedules.__all__,
    *stability.__all__,
    *tuning.__all__,
    "Changes",
    "apply_changes",
    "step_in_backward",
]
__version__ = "0.1.0"
