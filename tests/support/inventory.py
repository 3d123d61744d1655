"""The test inventory: one record per optimizer variant, the dtypes, the tensors and the tolerances.

Every generic test runs over it. The variants, dtypes and keep probabilities are those of `lrtricks verify`, to whose
inventory a new rule adds its rows; here stand the classes of torch.optim, and what only tests look at.
"""

import copy
import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import lrtricks_fused as lrt
from lrtricks_fused.tools.verify import inventory as verify
from lrtricks_fused.tools.verify.inventory import KEEP_PROBS
from lrtricks_fused.tools.verify.inventory import SEED as SEED

FULL = os.environ.get("LRTRICKS_FULL") == "1"  # make test-all: what is exhaustive, too


@dataclass(frozen=True)
class Case:
    """One variant: our class, its torch.optim twin (None if there is none), and the arguments of both."""

    name: str
    ours: type
    twin: type | None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """A private copy: a scheduler writes into a tensor lr."""
        return copy.deepcopy(self.kwargs)

    def make(self, params: Any, **extra: Any) -> torch.optim.Optimizer:
        """Our optimizer."""
        return self.ours(params, **{**self.arguments(), **extra})

    def make_twin(self, params: Any, **extra: Any) -> torch.optim.Optimizer:
        """The torch.optim optimizer of the same name and arguments."""
        return self.twin(params, **{**self.arguments(), **extra})


_LR = {"SGD": 0.03, "RMSprop": 0.01}
_USUAL_LR = 0.02
# What the tests step besides the variants of `lrtricks verify`. The last of each is the one with many options.
_FURTHER: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        dict(momentum=0.8, maximize=True),
        dict(momentum=0.8, nesterov=True, weight_decay=0.05),
    ],
}
_FURTHER_AVERAGE = [dict(momentum_window=1)]


def _rows(name: str, average: bool) -> list[dict[str, Any]]:
    """The options of a class's variants with a lr: those of ordinary momentum, or those of average momentum."""
    options = [
        v.options for v in verify.VARIANTS if v.optimizer == name and ("momentum_window" in v.options) == average
    ]
    further = [] if average else _FURTHER.get(name, [])
    own = [*(_FURTHER_AVERAGE if average and options else []), *(o for o in options if o not in further), *further]
    return [dict(lr=_LR.get(name, _USUAL_LR), **row) for row in own]


_NAMES = list(dict.fromkeys(variant.optimizer for variant in verify.VARIANTS))
_TABLE = [(getattr(lrt, name), getattr(torch.optim, name, None), _rows(name, average=False)) for name in _NAMES]
_TABLE += [(getattr(lrt, name), None, rows) for name in _NAMES if (rows := _rows(name, average=True))]


def _label(kwargs: dict[str, Any]) -> str:
    flags = [f"{key}={value}" for key, value in kwargs.items() if key != "lr"]
    return "-".join([*(["tensor_lr"] if isinstance(kwargs["lr"], torch.Tensor) else []), *flags]) or "plain"


CASES = [
    Case(f"{ours.__name__}-{_label(kwargs)}", ours, twin, kwargs)
    for ours, twin, rows in _TABLE
    for kwargs in [*rows, {**rows[-1], "lr": torch.tensor(0.015)}]  # one with a tensor lr per class
]
# One full-featured case per class (and rule), for tests of the Python surface that no formula flag can change.
RICH = [
    next(c for c in reversed(CASES) if (c.ours, c.twin) == (ours, twin) and isinstance(c.kwargs["lr"], float))
    for ours, twin, _ in _TABLE
]
# Each case with each probability of being kept; where that is 0 or 1 one per class, or with make test-all every one.
MASKED_CASES = [
    pytest.param(case, keep_prob, id=f"{case.name}-{keep_prob}")
    for case in CASES
    for keep_prob in KEEP_PROBS
    if FULL or 0 < keep_prob < 1 or any(case is rich for rich in RICH)
]
TWINS = [case for case in CASES if case.twin is not None]
CLASSES = list(dict.fromkeys(ours for ours, _, _ in _TABLE))


# Dtypes of the parameters and of their states, with names that pytest takes.
DTYPES = [replace(s, name=s.name.removesuffix(" states").replace(", ", "-")) for s in verify.STORAGES]
# What interpreted Triton steps where it takes seconds for each.
INTERPRETED = [dtype for dtype in DTYPES if FULL or dtype.name in ("f32-f32", "bf16-bf16")]
ISAS = ["avx512", "avx2", "baseline"]


@dataclass(frozen=True)
class Tolerance:
    """assert_close against torch.optim, and the reason why the values differ at all."""

    rtol: float
    atol: float
    reason: str


# Measured: the maximum of |ours - torch| / (1 + |torch|) after 10 steps of N(0, 1) parameters and gradients, over the
# inventory, torch's own samples and its for-loop, foreach and fused implementations.
TOLERANCE = {
    torch.float32: Tolerance(
        4e-6,
        4e-6,
        "measured 2.9e-6 (momentum_buffer of centered RMSprop, whose variance is a difference), parameters "
        "5.4e-7: torch contracts a*b+c and multiplies by lr / bias_correction1, we round every operation",
    ),
    torch.float64: Tolerance(
        1.5e-14,
        1.5e-14,
        "measured 1.1e-14 for RAdam, whose rho_t - 5 cancels three digits of a double and is summed "
        "in another order by torch; all others 3.1e-15, as float32",
    ),
    torch.bfloat16: Tolerance(
        2**-7,
        1e-6,
        "one step, computed in fp32 by both: where they differ a rounding may flip, which is 1 ulp; atol "
        "for p - update near 0",
    ),
    torch.float16: Tolerance(2**-10, 1e-6, "as bfloat16"),
}

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # the twins whose fused kernels exist on the CPU


def implementations(twin, kwargs):
    """Arguments that choose the twin's implementation."""
    rows = [{"foreach": False}]
    if not isinstance(kwargs.get("lr"), torch.Tensor):  # torch refuses foreach with a tensor lr on the CPU
        rows.append({"foreach": True})
    if twin in FUSED:
        rows.append({"fused": True})
    return rows
