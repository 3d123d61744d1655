"""Addresses of one call's tensors, gathered once and reused while they stay: what a fused step over a list reads.

To hand a tensor to an op costs about a microsecond, which for a model of many small tensors is more than the step
itself. A row of the table is one parameter: addresses of the parameter, the gradient, up to three states and the step
count, then the number of elements, the parameter's index and the codes of the two dtypes.
"""

from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .call import StepCall

PARAM, GRAD, STATE, STEP, NUMEL, INDEX, PARAM_DTYPE, STATE_DTYPE, COLUMNS = 0, 1, 2, 5, 6, 7, 8, 9, 10
MAX_STATES = STEP - STATE
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def _addresses(tensors: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _layouts(tensors: list[Tensor]) -> tuple[list[Any], ...]:
    """Dtypes, shapes and contiguity: lists of their own, which compare faster than one of tuples."""
    return [t.dtype for t in tensors], [t.shape for t in tensors], list(map(Tensor.is_contiguous, tensors))


def _same(these: list[Tensor], those: list[Tensor]) -> bool:
    return len(these) == len(those) and all(map(is_, these, those))


class AddressTable:
    """The table of one call, and what must still hold for it to be used by the next.

    Holds the parameters and states it points to, so that no address can be taken by another tensor meanwhile;
    gradients, which come and go, are looked up at every step.
    """

    def __init__(self, call: StepCall) -> None:
        self._held = self._lists(call)
        self._addresses = list(map(_addresses, self._held))
        self._layouts = _layouts(call.params)
        self._grad_addresses = _addresses(call.grads)
        self._indices = call.param_indices
        self.rows = self._fill(call) if self._fits(call) else None

    @staticmethod
    def _lists(call: StepCall) -> list[list[Tensor]]:
        return [call.params, *call.states.values(), call.steps]

    def _fits(self, call: StepCall) -> bool:
        """Whether addresses and sizes say all: contiguous tensors of matching shapes and dtypes on one device."""
        device = call.params[0].device
        _, shapes, contiguous = self._layouts
        used = [column for column in call.states.values() if column]
        return (
            all(tensor.device == device for tensors in (*self._held, call.grads) for tensor in tensors)
            and all(contiguous)
            and _layouts(call.grads) == self._layouts
            and all(_layouts(column)[1:] == (shapes, contiguous) for column in used)
            and all({state.dtype for state in states} <= DTYPE_CODES.keys() for states in zip(*used, strict=True))
            and all(len({state.dtype for state in states}) == 1 for states in zip(*used, strict=True))
            and all(step.dtype == torch.float64 and step.numel() == 1 for step in call.steps)
            and all(param.dtype in DTYPE_CODES for param in call.params)
        )

    def _fill(self, call: StepCall) -> Tensor:
        used = [column for column in call.states.values() if column]
        params, *states, steps = self._addresses
        columns = {
            PARAM: params,
            GRAD: self._grad_addresses,
            STEP: steps,
            NUMEL: [param.numel() for param in call.params],
            INDEX: call.param_indices,
            PARAM_DTYPE: [DTYPE_CODES[param.dtype] for param in call.params],
            STATE_DTYPE: [DTYPE_CODES[tensor.dtype] for tensor in (used[0] if used else call.params)],
            **{STATE + k: addresses for k, addresses in enumerate(states) if addresses},
        }
        rows = torch.zeros(len(call.params), COLUMNS, dtype=torch.int64)
        for number, column in columns.items():
            rows[:, number] = torch.tensor(column, dtype=torch.int64)
        return rows

    def update(self, call: StepCall) -> bool:
        """Whether the table holds for this call; gradients that have moved are entered."""
        lists = self._lists(call)
        if not (
            self._indices == call.param_indices
            and all(map(_same, lists, self._held))
            and list(map(_addresses, lists)) == self._addresses
            and _layouts(call.params) == self._layouts
        ):
            return False
        if self.rows is None:
            return _addresses(call.grads) == self._grad_addresses
        if _layouts(call.grads) != self._layouts:
            return False
        addresses = _addresses(call.grads)
        if addresses != self._grad_addresses:
            self._grad_addresses = addresses
            self.rows[:, GRAD] = torch.tensor(addresses, dtype=torch.int64)
        return True


def address_table(call: StepCall) -> Tensor | None:
    """The table of ``call``, or None where only the tensors themselves say enough (strided ones, subclasses)."""
    if call.tables is None or torch.compiler.is_compiling() or not {*map(type, call.params)} <= {Tensor, Parameter}:
        return None
    table = call.tables.get(call.table_key)
    if table is None or not table.update(call):
        table = call.tables[call.table_key] = AddressTable(call)
    return table.rows
