"""One step of one rule over a list of tensors: what every backend receives."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .keep import IndexMap
from .rule import RULES

PARTIAL_ELEMENTS = 64  # csrc/core/slice_mean.h
SLICE_PARTIALS = 16
MAX_SLICE_PARTIALS = 4096
SUMS = ("slope", "kept", "changed", "squared_update", "squared_param", "elements")  # csrc/core/sums.h


def slice_partials(length: int) -> int:
    """Lanes that the sum of a slice is split into, as in ``csrc/core/slice_mean.h``."""
    if length < PARTIAL_ELEMENTS:
        return 1
    return min(-(-length // (PARTIAL_ELEMENTS * SLICE_PARTIALS)) * SLICE_PARTIALS, MAX_SLICE_PARTIALS)


BESIDE = ("mirrors", "lows", "changes")  # what a step may write beside parameters and states


@dataclass(slots=True)
class Storage:
    """How operands are stored otherwise than kernels step them, see staged.py; lists have one entry per parameter.

    ``mirrors``: what a float32 parameter's rounding is written to. ``lows``: int16 that complete bfloat16 parameters to
    float32 masters. ``changes``: uint8 bitmaps of the elements whose stored bits have changed. ``stochastic`` and
    ``stochastic_states``: whether 16-bit parameters and states are rounded stochastically.
    """

    mirrors: list[Tensor | None] | None = None
    lows: list[Tensor | None] | None = None
    changes: list[Tensor | None] | None = None
    stochastic: bool = False
    stochastic_states: bool = False


@dataclass(slots=True)
class StepCall:
    """Arguments of one fused step. All lists have one entry per parameter.

    ``states`` maps the rule's state names, in the order of the op's schema, to lists; a state that the
    variant does not have (for example ``max_exp_avg_sq`` without AMSGrad) has an empty list.
    ``scalar_states`` are those of one float64 per parameter that the rule's record names; they advance with the steps.
    ``steps`` are 0-dim float64 counts *before* this step; a backend advances them unless ``found_inf`` is set.
    ``centralize``: the mean of each slice is taken off the gradients (see ``csrc/core/slice_mean.h``).
    ``clip``, a 0-dim float64 on the parameters' device or the CPU, is a further factor on the gradients.
    ``sums``, float64: one gains the slope <grad / grad_scale, displacement of the parameters> (``csrc/core/slope.h``),
    ``len(SUMS)`` gain these (``csrc/core/sums.h``).
    ``index_maps``: of parameters that are shards, which elements they hold; None for whole ones, or where all are.
    """

    rule: str
    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]
    steps: list[Tensor]
    param_indices: list[int]
    hyper: dict[str, float | bool | int]
    lr: float | Tensor
    weight_decay: float
    decoupled_weight_decay: bool
    maximize: bool
    keep_prob: float | Tensor
    grad_weight: float | Tensor
    seed: int
    grad_scale: Tensor | None
    found_inf: Tensor | None
    centralize: bool = False
    sums: Tensor | None = None
    clip: Tensor | None = None
    index_maps: list[IndexMap | None] | None = None
    scalar_states: dict[str, list[Tensor]] = field(default_factory=dict)
    storage: Storage | None = None
    tables: dict[Hashable, Any] | None = None  # where tables of addresses are kept between steps, see table.py
    table_key: Hashable = None
    alone: bool = True  # no other call belongs to the same step, which must be refused as a whole
    prepared: bool = False  # by a backend: the operands are checked, and the table, if there is one, is this call's
    table: Any = None
    kept: Any = None  # the table that is kept between steps, where it says too little, too
    copies: "StepCall | None" = None  # what is stepped instead, and copied back
    norms: "list[Norms]" = field(default_factory=list)  # calls whose gradients' squares are summed instead
    pieces: "list[StepCall]" = field(default_factory=list)  # what is stepped instead, one after the other
    staged: bool = False  # by a backend: it is stepped in float32 between conversions

    @property
    def window(self) -> int | None:
        """Slots of the states, where the rule's one state is a ring of shape (window, *shape of the parameter)."""
        return int(self.hyper["window"]) if RULES[self.rule].ring else None

    @property
    def variant(self) -> tuple[bool, ...]:
        """Which of the rule's optional states and flags this call has."""
        flags = {name for name, value in self.hyper.items() if value is True}
        return RULES[self.rule].variant(flags | {name for name, column in self.states.items() if column})

    @property
    def maps(self) -> list[IndexMap | None]:
        """The index map of each parameter."""
        return [None] * len(self.params) if self.index_maps is None else self.index_maps

    @property
    def wants_metrics(self) -> bool:
        """Whether all sums are asked for, and not the slope alone."""
        return self.sums is not None and self.sums.numel() > 1

    @property
    def mirrors(self) -> list[Tensor]:
        """The mirrors that there are."""
        given = None if self.storage is None else self.storage.mirrors
        return [mirror for mirror in given or () if mirror is not None]

    def count_versions(self) -> None:
        """Have graphs know that parameters and mirrors are written: kernels do not tell them."""
        torch.autograd.graph.increment_version([*self.params, *self.mirrors])

    @property
    def has_shards(self) -> bool:
        """Whether some parameters are shards."""
        return any(index_map is not None for index_map in self.index_maps or ())

    @property
    def rounds(self) -> int | None:
        """What is rounded stochastically: parameters are 1, states are 2. None where no storage is told."""
        return None if self.storage is None else self.storage.stochastic + 2 * self.storage.stochastic_states

    def map_integers(self) -> list[int]:
        """Base, run and pitch of all parameters, as the kernels take them: zeros of a whole one; nothing if all are."""
        return [number for index_map in self.index_maps or () for number in index_map or (0, 0, 0)]

    def slice_length(self, param: Tensor) -> int:
        """Elements of a slice whose mean is taken off the gradient of ``param``; 0 where nothing is."""
        return param.numel() // param.shape[0] if self.centralize and param.dim() > 1 and param.numel() else 0

    def state_shape(self, param: Tensor) -> tuple[int, ...]:
        """Shape of a state of ``param``."""
        return tuple(param.shape) if self.window is None else (self.window, *param.shape)


Norms = tuple[tuple[int, ...], StepCall]  # which parameters' gradients it has
