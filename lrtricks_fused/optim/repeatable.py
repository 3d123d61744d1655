"""A call of a step as one that can be taken again: with other numbers, and other gradients of the same kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..step.backends import Backend
from ..step.call import BESIDE, StepCall
from ..step.device import on, scalar
from ..step.host import same
from ..step.layouts import columns_beside
from ..step.native import TableStep, native_step
from .arguments import IN_TENSORS
from .checks import OF_SCALER
from .groups import LOW, CheckedGroup, Group
from .parts import Part
from .shards import local


@dataclass(slots=True)
class RepeatableCall:
    """A call that can be repeated, with the backend that took it; ``native`` is what the CPU's op takes.

    ``wholes``: the columns of the call's parameters, states and what is stored beside these as the optimizer has them:
    some are DTensors.
    """

    group: Group
    checked: CheckedGroup
    call: StepCall
    backend: Backend
    native: TableStep | None
    wholes: list[list[Any]]

    def has_moved(self) -> None:
        """Take the addresses of gradients, which the host's table has, to the device's."""
        if self.native is None:
            with on(self.call.params[0].device):
                self.call.table.upload_gradients()

    def fits(self, checked: CheckedGroup, scaler: dict[str, Any]) -> bool:
        """Whether the call stays the same but for its numbers, where this is what now follows from its group."""
        is_alike = (checked.wanted, checked.scalars) == (self.checked.wanted, self.checked.scalars)
        return is_alike and _are_read([*scaler.values()], self.call)

    def tell(self, checked: CheckedGroup, scaler: dict[str, Any]) -> None:
        """Take the numbers of a group that fits, and a GradScaler's."""
        self.checked = checked
        for name, value in (scaler | checked.arguments).items():
            setattr(self.call, name, value)
        self.call.hyper = checked.hyper
        if self.native is not None:
            self.native = TableStep(self.call)

    def count_versions(self) -> None:
        """Have graphs know that the parameters have changed.

        Before the step: their objects, which have just been looked at, are in the cache; after it they are not.
        """
        torch.autograd.graph.increment_version(self.wholes[0])
        if self.wholes[0] is not self.call.params:
            torch.autograd.graph.increment_version(self.call.params)

    def step(self) -> None:
        if self.native is None:
            return self.backend.step(self.call)  # which counts the versions of mirrors itself
        if mirrors := self.call.mirrors:
            torch.autograd.graph.increment_version(mirrors)
        self.native()


def repeatable(part: Part, call: StepCall, backend: Backend, optimizer: Any) -> RepeatableCall | None:
    """The call as one that can be repeated; None where more than its tables and numbers decides on what it does."""
    plain = not (call.staged or call.pieces or call.norms) and call.copies is None
    if not plain or call.table is None or call.table is not optimizer._tables.get(call.table_key):
        return None
    on_cpu = backend.step is native_step and call.params[0].is_cpu
    if call.wants_metrics and not on_cpu:
        return None  # no kernel sums them: they are made of the gradients, which the call will not have
    if call.clip is not None and call.table.grad_code is None:
        return None  # norms of several dtypes are made of the gradients, too
    if not _are_read([getattr(call, name) for name in (*IN_TENSORS, *OF_SCALER)], call):
        return None
    wholes = optimizer._maps[call.table_key].wholes if part.sharded else [call.params, *call.states.values()]
    wholes = [*wholes, *_wholes_beside(call, wholes[0], optimizer)]
    if not same([local(param.grad) for param in wholes[0]], call.grads):
        return None
    call.grads = []  # which come and go
    return RepeatableCall(part.group, part.checked, call, backend, TableStep(call) if on_cpu else None, wholes)


def _are_read(values: list[Any], call: StepCall) -> bool:
    """Whether the kernels read those that are tensors, and not copies of them, which would know nothing of a change."""
    device = call.params[0].device
    return all(not isinstance(value, Tensor) or scalar(value, device) is value for value in values)


def _wholes_beside(call: StepCall, params: list[Any], optimizer: Any) -> Iterator[list[Any]]:
    """The columns of columns_beside: of DTensors the other halves of masters, which are states, are DTensors, too."""
    for name in BESIDE:
        for column in columns_beside(call, (name,)):
            is_state = name == "lows"
            yield [
                optimizer.state[param].get(LOW, own) if is_state else own
                for param, own in zip(params, column, strict=True)
            ]
