"""What `lrtricks verify` runs, as data: optimizers with their flags, dtypes, tensors of every layout."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...step.storage import NAMES, PAIRS, STATE_DTYPES

SEED = 0x123456789ABCDEF0


@dataclass(frozen=True)
class Target:
    """Where a check steps, and by which backend."""

    device: torch.device
    backend: str = "native"

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter steps here, at some 0.1 s per program."""
        return (self.backend, self.device.type) == ("triton", "cpu")


REFERENCE = Target(torch.device("cpu"), "reference")


@dataclass(frozen=True)
class Variant:
    """An optimizer class by name, and its options."""

    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.optimizer}({', '.join(f'{key}={value}' for key, value in self.options.items())})"


_BETAS = dict(betas=(0.8, 0.95))
_OPTIONS: dict[str, list[dict[str, Any]]] = {  # the last of each has as many flags as go together
    "SGD": [
        {}, dict(momentum=0.8), dict(momentum=0.8, dampening=0.3), dict(momentum=0.8, nesterov=True),
        dict(weight_decay=0.05), dict(maximize=True), dict(momentum=0.8, nesterov=True, weight_decay=0.05),
        dict(momentum_window=2), dict(momentum_window=5, weight_decay=0.05, maximize=True),
        dict(momentum=0.8, dampening=0.3, weight_decay=0.05, maximize=True),
    ],
    "Adam": [
        {}, _BETAS, dict(betas=(0.0, 0.95)), dict(eps=1e-3), dict(weight_decay=0.05), dict(amsgrad=True),
        dict(maximize=True), dict(weight_decay=0.05, decoupled_weight_decay=True),
        dict(**_BETAS, eps=1e-3, weight_decay=0.05, amsgrad=True, maximize=True),
    ],
    "AdamW": [
        {}, dict(weight_decay=0.3), dict(weight_decay=0.0),
        dict(**_BETAS, eps=1e-3, weight_decay=0.05, amsgrad=True, maximize=True),
    ],
    "RMSprop": [
        {}, dict(alpha=0.9), dict(eps=1e-3), dict(weight_decay=0.05), dict(momentum=0.8), dict(centered=True),
        dict(centered=True, momentum=0.8), dict(maximize=True),
        dict(alpha=0.9, eps=1e-3, weight_decay=0.05, momentum=0.8, centered=True, maximize=True),
    ],
    "RAdam": [
        {}, _BETAS, dict(betas=(0.8, 0.5)), dict(eps=1e-3), dict(weight_decay=0.05), dict(maximize=True),
        dict(weight_decay=0.05, decoupled_weight_decay=True),
        dict(**_BETAS, eps=1e-3, weight_decay=0.05, decoupled_weight_decay=True, maximize=True),
    ],
    "AdaBelief": [
        {}, _BETAS, dict(eps=1e-3), dict(weight_decay=0.05), dict(maximize=True),
        dict(weight_decay=0.05, decoupled_weight_decay=True),
        dict(**_BETAS, eps=1e-3, weight_decay=0.05, maximize=True),
    ],
    "NAdam": [
        {}, _BETAS, dict(momentum_decay=0.1), dict(eps=1e-3), dict(weight_decay=0.05), dict(maximize=True),
        dict(weight_decay=0.05, decoupled_weight_decay=True),
        dict(**_BETAS, eps=1e-3, momentum_decay=0.02, weight_decay=0.05, decoupled_weight_decay=True, maximize=True),
    ],
    "Lion": [{}, _BETAS, dict(weight_decay=0.05), dict(**_BETAS, weight_decay=0.05, maximize=True)],
}  # fmt: skip
VARIANTS = [Variant(name, options) for name, rows in _OPTIONS.items() for options in rows]
RICH = [Variant(name, rows[-1]) for name, rows in _OPTIONS.items()]


@dataclass(frozen=True)
class Storage:
    """Dtype of the parameters, and of their states where these are 16-bit ones."""

    name: str
    dtype: torch.dtype
    state_dtype: torch.dtype | None = None


def _storage(dtype: torch.dtype, state_dtype: torch.dtype) -> Storage:
    if len(STATE_DTYPES[dtype]) == 1:
        return Storage(NAMES[dtype], dtype)
    named = f"{NAMES[dtype]}, {NAMES[state_dtype]} states"
    return Storage(named, dtype, None if state_dtype == STATE_DTYPES[dtype][0] else state_dtype)


STORAGES = [_storage(*pair) for pair in PAIRS]
F32 = STORAGES[0]
KEEP_PROBS = [1.0, 0.5, 0.0]


def contiguous(values: Tensor) -> Tensor:
    """Ordinary memory."""
    return values.clone(memory_format=torch.contiguous_format)


def unaligned(values: Tensor) -> Tensor:
    """Contiguous, one element off every alignment."""
    return values.new_zeros(values.numel() + 2)[1:-1].view(values.shape).copy_(values)


def channels_last(values: Tensor) -> Tensor:
    """NHWC memory of an NCHW tensor."""
    return values.clone(memory_format=torch.channels_last)


def transposed(values: Tensor) -> Tensor:
    """The last two dimensions swapped in memory."""
    return contiguous(values.transpose(-1, -2)).transpose(-1, -2)


def gapped(values: Tensor) -> Tensor:
    """Every second element of memory."""
    return values.new_zeros(*values.shape, 2)[..., 0].copy_(values)


Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spec:
    """Shape of a parameter, memory layout of it and of its gradient."""

    shape: tuple[int, ...]
    param: Layout = contiguous
    grad: Layout = contiguous


@functools.cache
def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """N(0, 1), the same on every machine. Not to be written to."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def special(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Zeros, subnormals, infinities and NaN; parameters (seed below 1000) meet every one of them as gradients."""
    info = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, info.max, -info.max, info.tiny, info.tiny / 4, float("inf"), -float("inf"),
              float("nan"), 1e-3, -65000.0, 1 + info.eps, 0.3]  # fmt: skip
    row = torch.tensor(values, dtype=torch.float64).to(dtype)
    column = 0 if seed < 1000 else 1
    pairs = torch.cartesian_prod(row, row)[:, column]
    return pairs.repeat(-(-shape[0] // len(pairs)))[: shape[0]].clone()


@dataclass(frozen=True)
class Work:
    """A list of parameters, how often it is stepped, and with which values."""

    name: str
    specs: tuple[Spec, ...]
    steps: int = 3
    values: Callable[[tuple[int, ...], torch.dtype, int], Tensor] = normal


_SIZES = [(0,), (), (1,), (3,), (63,), (64,), (65,), (511,), (513,), (4, 0, 3), (3, 5, 7), (8192,), (8193,), (20_001,)]
CONTIGUOUS = Work("contiguous", (
    *map(Spec, _SIZES), Spec((1300,), unaligned, unaligned), Spec((9001,), unaligned), Spec((9001,), grad=unaligned),
))  # fmt: skip
STRIDED = Work("strided", (
    Spec((2, 8, 9, 9), channels_last, channels_last), Spec((2, 8, 9, 9), channels_last), Spec((33, 65), transposed),
    Spec((33, 65), grad=transposed), Spec((40, 30), gapped, gapped), Spec((700,)),
), 2)  # fmt: skip
SPECIAL = Work("special values", (Spec((1200,)), Spec((1027,), unaligned)), 2, special)
LONG = Work("12 steps", (Spec((1500,)), Spec((7, 5))), 12)  # beyond RAdam's change of branch at step 6
SPARSE = Work("contiguous, few", (
    *map(Spec, [(0,), (), (65,), (513,), (8193,)]), Spec((1300,), unaligned, unaligned), Spec((9001,), grad=unaligned),
), 2)  # fmt: skip
SPARSE_LONG = Work("7 steps", (Spec((700,)),), 7)
TINY = Work("500 tiny tensors", tuple(Spec((1 + 37 * i % 90,)) for i in range(500)), 2)
SPARSE_TINY = Work("20 tiny tensors", TINY.specs[:20], TINY.steps)
SMALL = Work("small", (Spec((9000,)), Spec((700,)), Spec((5, 3)), Spec(())))
_SLICES = [(3, 5, 7), (40, 3, 3, 3), (0, 5), (5, 0), (5, 1), (5, 64), (5, 65), (3, 513), (2, 9001), (700,), ()]
SLICES = Work("slices", (
    *map(Spec, _SLICES), Spec((9000, 2)), Spec((1, 64 * 4096 + 300)), Spec((2, 4500), unaligned),
))  # fmt: skip
SPARSE_SLICES = Work("slices, few", tuple(map(Spec, [(5, 64), (5, 65), (2, 9001), (700,)])))

# What an interpreted target steps instead: as many kinds of tensors, in far fewer programs.
INTERPRETED = {CONTIGUOUS: SPARSE, LONG: SPARSE_LONG, SLICES: SPARSE_SLICES, TINY: SPARSE_TINY}
