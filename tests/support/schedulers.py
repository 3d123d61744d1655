"""The learning rate schedulers' closed forms, as the paper prints them, in numpy's float64."""

import numpy as np

import lrtricks_fused as lrt

# Both sides are float64; k-th powers and cosines differ by a few roundings.
CLOSE = dict(rel=1e-12, abs=1e-14)


def poly(t, base, low):
    r = min(t / 7, 1)
    return (base - low) * (1 - r**1.7) ** 0.9 + low


def trapezoid(t, base, low):
    return low + (base - low) * float(np.interp(min(t / 7, 1), [0, 0.25, 0.6, 1], [0, 1, 1, 0]))


def htd(t, base, low):
    r = min(t / 7, 1)
    return low + (base - low) / 2 * (1 - np.tanh(-5 * (1 - r) + 2 * r))


# class, arguments, lr after t of 7 steps
SCHEDULERS = {
    "polynomial": (lrt.PolynomialKDecayLR, dict(k=1.7, power=0.9), poly),
    "cosine": (
        lrt.CosineKDecayLR,
        dict(k=2.3),
        lambda t, base, low: 0.5 * (base - low) * (1 + np.cos(np.pi * min(t / 7, 1) ** 2.3)) + low,
    ),
    "exponential": (
        lrt.ExponentialKDecayLR,
        dict(k=0.6),
        lambda t, base, low: ((base - low) * np.exp(-(min(t / 7, 1) ** 0.6)) + low - base / np.e) / (1 - 1 / np.e),
    ),
    "multi": (
        lrt.MultiKDecayLR,
        dict(ks=[0.5, 1.0, 4.0], power=1.3),
        lambda t, base, low: (base - low) * (1 - np.mean([min(t / 7, 1) ** k for k in (0.5, 1, 4)])) ** 1.3 + low,
    ),
    "trapezoid": (lrt.TrapezoidLR, dict(rise=0.25, fall=0.6), trapezoid),
    "tanh": (lrt.TanhLR, dict(lower=-5.0, upper=2.0), htd),
}
