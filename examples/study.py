"""The comparison: each optimizer unmasked at lr, masked at lr, and unmasked at keep_prob * lr, over paired seeds.

The third is the honest control: a mask halves the mean step, and so does half the learning rate.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from lrtricks_fused import SGD, Adam

from .digits import Curves, load_split, train

KEEP_PROB = 0.5
# A claim shows if its differences lie beyond CLEAR standard errors of their mean, and does not if one lies within
# ERRORS. In between it is too close to call: on another processor, which rounds otherwise, it may come out otherwise.
ERRORS, CLEAR = 2, 4
# What comes of "the mask beats both controls", as outcome() has it -> in words.
IN_WORDS = {
    "shows": "beats both controls",
    "is reversed": "loses to both controls",
    "is too close to call": "is too close to both controls to call",
    "does not show": "does not beat both controls",
}


@dataclass(frozen=True)
class Variant:
    """A factor on the learning rate and a keep probability."""

    name: str
    lr_factor: float
    keep_prob: float


FULL = Variant("no mask, lr", 1.0, 1.0)
MASKED = Variant(f"keep {KEEP_PROB:g}, lr", 1.0, KEEP_PROB)
HALF = Variant(f"no mask, lr * {KEEP_PROB:g}", KEEP_PROB, 1.0)
VARIANTS = (FULL, MASKED, HALF)

# Name -> class, learning rate, further arguments.
OPTIMIZERS: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "Adam": (Adam, 3e-3, {}),
    "SGD with momentum": (SGD, 0.1, {"momentum": 0.9}),
}

Runs = dict[str, dict[str, list[Curves]]]  # optimizer -> variant -> one entry per seed


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of a paired difference, and the standard error of that mean."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: list[float], others: list[float]) -> "Difference":
        """Paired differences values - others, two or more."""
        differences = [a - b for a, b in zip(values, others, strict=True)]
        return cls(mean(differences), stdev(differences) / math.sqrt(len(differences)))

    @property
    def in_errors(self) -> float:
        """The mean in standard errors, infinite where all differences are the same and not 0."""
        if self.standard_error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.standard_error


def outcome(differences: Iterable[Difference]) -> str:
    """What comes of a claim that says that all differences are positive: a verb."""
    sizes = [difference.in_errors for difference in differences]
    if min(sizes) > CLEAR:
        return "shows"
    if max(sizes) < -CLEAR:
        return "is reversed"
    return "is too close to call" if min(sizes) > ERRORS or max(sizes) < -ERRORS else "does not show"


def run_all(seeds: int, epochs: int, on_epoch: Callable[[], object]) -> Runs:
    """Train every optimizer in every variant from every seed."""
    runs: Runs = {name: {variant.name: [] for variant in VARIANTS} for name in OPTIMIZERS}
    for seed in range(seeds):
        split = load_split(seed)
        for name, (optimizer, lr, options) in OPTIMIZERS.items():
            for variant in VARIANTS:

                def make(params, optimizer=optimizer, lr=lr * variant.lr_factor, variant=variant, options=options):
                    return optimizer(params, lr=lr, keep_prob=variant.keep_prob, seed=seed, **options)  # noqa: B023

                runs[name][variant.name].append(train(split, seed, make, epochs, on_epoch))
    return runs


def final_accuracies(runs: Sequence[Curves]) -> list[float]:
    """Test accuracy after the last epoch, per seed, in percent."""
    return [100 * curves.test_accuracy[-1] for curves in runs]


def curve_distance(runs: Sequence[Curves], others: Sequence[Curves]) -> float:
    """How far apart training losses run: mean over epochs and seeds of |ln(loss / other loss)|."""
    return mean(
        abs(math.log(a / b))
        for one, other in zip(runs, others, strict=True)
        for a, b in zip(one.train_loss, other.train_loss, strict=True)
    )


def verdict(name: str, runs: dict[str, list[Curves]]) -> str:
    """What the figures of one optimizer say, computed from them."""
    accuracies = {variant: final_accuracies(curves) for variant, curves in runs.items()}
    against = {
        control.name: Difference.of(accuracies[MASKED.name], accuracies[control.name]) for control in (FULL, HALF)
    }
    parts = [f"{d.mean:+.2f} ± {d.standard_error:.2f} points against '{control}'" for control, d in against.items()]
    beats = IN_WORDS[outcome(against.values())]
    to_full, to_half = (curve_distance(runs[MASKED.name], runs[control.name]) for control in (FULL, HALF))
    alike = "Here the mask acts like" if to_half < to_full / 3 else "Here the mask does not act merely like"
    return (
        f"{name}: '{MASKED.name}' {beats} in test accuracy ({', '.join(parts)}; mean ± standard error of the paired "
        f"difference, clear beyond {CLEAR}). {alike} lr * {KEEP_PROB:g}: its training loss is a factor of "
        f"{math.exp(to_half):.2f} from '{HALF.name}' and of {math.exp(to_full):.2f} from '{FULL.name}' "
        "(geometric mean over epochs)."
    )
