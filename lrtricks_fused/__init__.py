"""Drop-in PyTorch optimizers whose fused step contains learning-rate tricks."""

from .optim import SGD, AdaBelief, Adam, AdamW, RAdam, RMSprop

__all__ = ["SGD", "AdaBelief", "Adam", "AdamW", "RAdam", "RMSprop"]
__version__ = "0.1.0"
