"""Schedules of the learning rate, of the gradient's weight and of the keep probability."""

from .base import Schedule
from .group import GradientWeight, KeepProb
from .k_decay import cosine_k_decay, exponential_k_decay, multi_k_decay, polynomial_k_decay
from .lr import CosineKDecayLR, ExponentialKDecayLR, MultiKDecayLR, PolynomialKDecayLR, TanhLR, TrapezoidLR
from .shapes import constant, late, linear, long_tail, piecewise, random_gradient, tanh_decay, trapezoid
from .subnetworks import SubnetworkLR, layer_groups

__all__ = [
    "CosineKDecayLR",
    "ExponentialKDecayLR",
    "GradientWeight",
    "KeepProb",
    "MultiKDecayLR",
    "PolynomialKDecayLR",
    "Schedule",
    "SubnetworkLR",
    "TanhLR",
    "TrapezoidLR",
    "constant",
    "cosine_k_decay",
    "exponential_k_decay",
    "late",
    "layer_groups",
    "linear",
    "long_tail",
    "multi_k_decay",
    "piecewise",
    "polynomial_k_decay",
    "random_gradient",
    "tanh_decay",
    "trapezoid",
]
