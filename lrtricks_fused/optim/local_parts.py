"""Calls of DTensors in a step: their local tensors in place of these, derived once and kept while they hold."""

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from ..step.call import StepCall
from ..step.host import ask_for, same, tensor_rows
from ..step.slots import HeldSlots
from .shards import check_centralize, index_map, is_dtensor, local


class LocalParts:
    """What a step takes of the parameters and states of a call: local tensors, and which elements they are.

    They are derived once, and hold as long as the DTensors, their specs and their local tensors are the same objects.

    Args:
        columns: lists of one tensor per parameter, the parameters first; some tensors are DTensors.
    """

    def __init__(self, columns: list[list[Any]]) -> None:
        self._columns = columns
        sharded = [[tensor for tensor in column if is_dtensor(tensor)] for column in columns]
        self._slots = [
            HeldSlots(sharded[0], "_local_tensor", "_spec"),
            HeldSlots([tensor for column in sharded[1:] for tensor in column], "_local_tensor"),
        ]
        self.maps = [index_map(param) if is_dtensor(param) else None for param in columns[0]]
        self.columns = [list(map(local, column)) for column in columns]
        self._rows: Tensor | None = None
        self._looks = 0

    @property
    def wholes(self) -> list[list[Any]]:
        """The columns that it is of."""
        return self._columns

    def hold(self, columns: list[list[Any]]) -> bool:
        """Whether it holds of these columns."""
        if len(columns) != len(self._columns) or not all(map(same, self._columns, columns)):
            return False
        self._columns = columns  # of which the next call may have the same lists
        self._looks += 1
        if self._looks == 2:
            self._rows = tensor_rows(columns[0])
        return all(slots.hold() for slots in self._slots)

    def ask(self) -> None:
        """Ask for the objects of the parameters, at which a step looks first; see the note in host.py."""
        ask_for(self._rows)


def localize(call: StepCall, known: dict[Hashable, LocalParts]) -> None:
    """Put local tensors into a call whose gradients are local already, and tell which elements they are.

    Args:
        call: the step; some of its parameters are DTensors.
        known: what earlier steps have derived, by the calls' table_key; entered here.

    Raises:
        ValueError: a parameter's placements are not for this step.
    """
    columns = [call.params, *call.states.values()]
    parts = known.get(call.table_key)
    if parts is None or not parts.hold(columns):
        parts = known[call.table_key] = LocalParts(columns)
    if call.centralize:
        for param in filter(is_dtensor, call.params):
            check_centralize(param)
    call.index_maps = parts.maps if any(parts.maps) else None
    call.params, *states = parts.columns
    call.states = dict(zip(call.states, states, strict=True))
