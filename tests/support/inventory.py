"""The test inventory: one record per optimizer variant, the dtypes, the tensors and the tolerances.

Every generic test runs over it; a new rule adds rows here and nothing elsewhere.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

import lrtricks_fused as lrt

SEED = 0x123456789ABCDEF0


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


_SGD = [
    dict(lr=0.03),
    dict(lr=0.03, momentum=0.8),
    dict(lr=0.03, momentum=0.8, dampening=0.3),
    dict(lr=0.03, momentum=0.8, nesterov=True),
    dict(lr=0.03, weight_decay=0.05),
    dict(lr=0.03, momentum=0.8, maximize=True),
    dict(lr=0.03, momentum=0.8, dampening=0.3, weight_decay=0.05, maximize=True),
    dict(lr=0.03, momentum=0.8, nesterov=True, weight_decay=0.05),
]
_AVERAGE_SGD = [
    dict(lr=0.03, momentum_window=1),
    dict(lr=0.03, momentum_window=2),
    dict(lr=0.03, momentum_window=5, weight_decay=0.05, maximize=True),
]
_ADAM = [
    dict(lr=0.02),
    dict(lr=0.02, betas=(0.8, 0.95)),
    dict(lr=0.02, betas=(0.0, 0.95)),
    dict(lr=0.02, eps=1e-3),
    dict(lr=0.02, weight_decay=0.05),
    dict(lr=0.02, weight_decay=0.05, decoupled_weight_decay=True),
    dict(lr=0.02, amsgrad=True),
    dict(lr=0.02, maximize=True),
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05, amsgrad=True, maximize=True),
]
_ADAMW = [
    dict(lr=0.02),
    dict(lr=0.02, weight_decay=0.3),
    dict(lr=0.02, weight_decay=0.0),
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05, amsgrad=True, maximize=True),
]
_RMSPROP = [
    dict(lr=0.01),
    dict(lr=0.01, alpha=0.9),
    dict(lr=0.01, eps=1e-3),
    dict(lr=0.01, weight_decay=0.05),
    dict(lr=0.01, momentum=0.8),
    dict(lr=0.01, centered=True),
    dict(lr=0.01, centered=True, momentum=0.8),
    dict(lr=0.01, maximize=True),
    dict(lr=0.01, alpha=0.9, eps=1e-3, weight_decay=0.05, momentum=0.8, centered=True, maximize=True),
]
_RADAM = [
    dict(lr=0.02),
    dict(lr=0.02, betas=(0.8, 0.95)),
    dict(lr=0.02, betas=(0.8, 0.5)),  # rho_inf < 5: never rectified
    dict(lr=0.02, eps=1e-3),
    dict(lr=0.02, weight_decay=0.05),
    dict(lr=0.02, weight_decay=0.05, decoupled_weight_decay=True),
    dict(lr=0.02, maximize=True),
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05, decoupled_weight_decay=True, maximize=True),
]
_ADABELIEF = [
    dict(lr=0.02),
    dict(lr=0.02, betas=(0.8, 0.95)),
    dict(lr=0.02, eps=1e-3),
    dict(lr=0.02, weight_decay=0.05),
    dict(lr=0.02, weight_decay=0.05, decoupled_weight_decay=True),
    dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05, maximize=True),
]
_TABLE = [
    (lrt.SGD, torch.optim.SGD, _SGD),
    (lrt.Adam, torch.optim.Adam, _ADAM),
    (lrt.AdamW, torch.optim.AdamW, _ADAMW),
    (lrt.RMSprop, torch.optim.RMSprop, _RMSPROP),
    (lrt.RAdam, torch.optim.RAdam, _RADAM),
    (lrt.AdaBelief, None, _ADABELIEF),
    (lrt.SGD, None, _AVERAGE_SGD),
]


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
TWINS = [case for case in CASES if case.twin is not None]
CLASSES = list(dict.fromkeys(ours for ours, _, _ in _TABLE))


@dataclass(frozen=True)
class DtypeCase:
    """Dtype of the parameters and, for 16-bit ones, of their states."""

    name: str
    dtype: torch.dtype
    state_dtype: torch.dtype | None = None


DTYPES = [
    DtypeCase("f32", torch.float32),
    DtypeCase("f64", torch.float64),
    DtypeCase("bf16-f32", torch.bfloat16),
    DtypeCase("bf16-bf16", torch.bfloat16, torch.bfloat16),
    DtypeCase("f16-f32", torch.float16),
    DtypeCase("f16-f16", torch.float16, torch.float16),
]
KEEP_PROBS = [1.0, 0.5, 0.0]
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
