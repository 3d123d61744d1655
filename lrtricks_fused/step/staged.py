"""Steps whose operands are stored otherwise than the kernels step them: as float32, and then as they are stored.

[note: Storage] Gradients may have another dtype than their parameters; float32 parameters may have 16-bit states; a
16-bit parameter may be half of a float32 master, or be rounded stochastically, as its states may; a float32 parameter
may have a mirror, its rounding to 16 bits; and a bit per element may say whether what is stored has changed. All of it
is a step of float32 operands between two conversions. This module is that sentence, in tensor operations on any device:
what the reference does, what other backends do around their kernels, and what the native CPU kernels do in one pass.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .call import StepCall, Storage
from .copies import one_by_one, writable
from .keep import drawn_mask
from .operands import shares_memory, written
from .rounding import (
    PARAM_MULTIPLIER,
    STATE_MULTIPLIERS,
    joined,
    rounding_bits,
    rounding_words,
    split,
    stochastically_rounded,
)
from .sums import add_totals, metric_terms, same_bits, slope_terms, sums_of_chunks, unless_skipped
from .table import ACCESS

Step = Callable[[StepCall], None]


def step_staged(call: StepCall, step: Step) -> None:
    """One step, of which ``step`` takes the part between the conversions."""
    if shares_memory(call):
        for piece in one_by_one(call):
            step_staged(piece, step)
        return
    with writable(written(call)):
        working = _working(call)
        step(working)
        add_totals(call, [_store(call, working, i) for i in range(len(call.params))])


@contextmanager
def measured(call: StepCall) -> Iterator[StepCall]:
    """A call without the metrics, which are summed up of what its step has made once that is done.

    For kernels that do not sum them; the slope, which is one of them, has the same bits as theirs.
    """
    stored = [param.detach().clone() for param in call.params]
    yield replace(call, sums=None)
    chunks = []
    for i, (param, grad, old) in enumerate(zip(call.params, call.grads, stored, strict=True)):
        before, after = _real(old), _real(param)
        terms = slope_terms(_real(grad), before, after)
        terms += metric_terms(before, after, _Stored.keeps(call, i), ~same_bits(old, param))
        chunks.append(sums_of_chunks(terms, ACCESS // param.dtype.itemsize))
    add_totals(call, chunks)


def _working(call: StepCall) -> StepCall:
    """The same call of float32 copies (float64 ones of float64 parameters), without sums."""
    lows = _column(call, "lows")
    params = [_real(p) if low is None else joined(p, low) for p, low in zip(call.params, lows, strict=True)]
    return replace(
        call, params=params, grads=[g.to(p.dtype) for g, p in zip(call.grads, params, strict=True)],
        states={name: list(map(_real, column)) for name, column in call.states.items()},
        storage=None, sums=None, staged=False, tables=None if params[0].is_cpu else {}, prepared=False, table=None,
    )  # fmt: skip


def _real(tensor: Tensor) -> Tensor:
    """A contiguous copy in the compute type."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)


def _column(call: StepCall, name: str) -> list[Tensor | None]:
    column = getattr(call.storage, name, None)
    return [None] * len(call.params) if column is None else column


class _Stored:
    """How one parameter and what belongs to it are stored after a step.

    Nothing waits for a device: a step that is skipped leaves float32 copies as they were, whose conversion is exact.
    """

    def __init__(self, call: StepCall, working: StepCall, i: int) -> None:
        self._call, self._i = call, i
        self._step, self._map = call.steps[i], call.maps[i]
        self.keep = self.keeps(call, i)
        self._new, self._param = working.params[i], call.params[i]
        self._storage = call.storage or Storage()

    @staticmethod
    def keeps(call: StepCall, i: int) -> Tensor:
        """Which elements the step has moved, of one parameter."""
        keep = drawn_mask(call.params[i], call.keep_prob, call.seed, call.steps[i], call.param_indices[i], call.maps[i])
        return unless_skipped(keep, call.found_inf)

    def param(self) -> Tensor:
        """The parameter as it is to be stored."""
        low = _column(self._call, "lows")[self._i]
        if low is None:
            rounded = self._rounded(self._new, self._param.dtype, self._storage.stochastic, PARAM_MULTIPLIER)
            return torch.where(self.keep, rounded, self._param)
        high, new_low = split(self._new)
        low.copy_(torch.where(self.keep, new_low, low))
        return torch.where(self.keep, high, self._param)

    def state(self, number: int, new: Tensor, dtype: torch.dtype) -> Tensor:
        """The ``number``-th state of the variant as it is to be stored."""
        return self._rounded(new, dtype, self._storage.stochastic_states, STATE_MULTIPLIERS[number])

    def mirror(self, mirror: Tensor) -> Tensor:
        """The mirror as it is to be stored."""
        return torch.where(self.keep, self._new.to(mirror.dtype), mirror)

    def _rounded(self, new: Tensor, dtype: torch.dtype, stochastic: bool, multiplier: int) -> Tensor:
        if not stochastic or dtype.itemsize != 2:
            return new.to(dtype)
        return stochastically_rounded(new, rounding_bits(self._words, multiplier), dtype)

    @functools.cached_property
    def _words(self) -> Tensor:
        call = self._call
        return rounding_words(self._new, call.seed, self._step, call.param_indices[self._i], self._map)


def _store(call: StepCall, working: StepCall, i: int) -> Tensor:
    """Writes what one parameter's step has made; its sums, by chunks, where they are asked for."""
    stored, param = _Stored(call, working, i), call.params[i]
    low, mirror, bitmap = (_column(call, name)[i] for name in ("lows", "mirrors", "changes"))
    terms: list[Tensor] = []
    before = None
    if call.sums is not None:
        before = _real(param) if low is None else joined(param, low)
    new_param = stored.param()
    if before is not None:
        after = new_param.to(before.dtype) if low is None else joined(new_param, low)
        terms = slope_terms(working.grads[i], before, after)
        if call.wants_metrics:
            changed = ~same_bits(new_param, param) if low is None else ~same_bits(after, before)
            terms += metric_terms(before, after, stored.keep, changed)
    if mirror is None:
        changed_bits = None if bitmap is None else ~same_bits(new_param, param)
    else:
        new_mirror = stored.mirror(mirror)
        changed_bits = None if bitmap is None else ~same_bits(new_mirror, mirror)
        mirror.copy_(new_mirror)
    if bitmap is not None:
        bitmap |= packed_bits(changed_bits)
    param.copy_(new_param)
    states = [(call.states[name][i], working.states[name][i]) for name, column in call.states.items() if column]
    for number, (state, new_state) in enumerate(states):
        state.copy_(stored.state(number, new_state, state.dtype))
    dtype = working.params[i].dtype
    return sums_of_chunks(terms, ACCESS // dtype.itemsize)


def packed_bits(mask: Any) -> Tensor:
    """A boolean tensor as uint8: bit i % 8 of byte i // 8 is element i in row-major order."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=flat.device)  # made there: a copy would wait for it
    return (flat * weights).sum(1, dtype=torch.uint8)


def unpacked_bits(bitmap: Tensor, numel: int) -> Tensor:
    """The boolean tensor of shape (numel,) that :func:`packed_bits` packed."""
    places = torch.arange(8, dtype=torch.uint8, device=bitmap.device)
    return (bitmap.unsqueeze(1) >> places & 1).flatten()[:numel].bool()
