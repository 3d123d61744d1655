"""Drop-in optimizers, one class per rule."""

from .adabelief import AdaBelief
from .adam import Adam, AdamW
from .lion import Lion
from .nadam import NAdam
from .radam import RAdam
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = ["SGD", "AdaBelief", "Adam", "AdamW", "Lion", "NAdam", "RAdam", "RMSprop"]
