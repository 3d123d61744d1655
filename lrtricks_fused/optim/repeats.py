"""Steps that repeat the one before: nothing is gathered, checked or built again where all of it is as it was.

A step is repeated where a record of it (step/record.py) says that optimizer, groups, options, states and tensors are
the same. Gradients may have moved, and scheduled numbers may have changed. Any other step is taken as a whole, and so
are all where the native library cannot look at Python's objects.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..step.backends import Backend
from ..step.call import StepCall
from ..step.device import is_captured, on
from ..step.host import same
from ..step.layouts import columns_beside
from ..step.native import TableStep, native_step
from ..step.published import layout
from ..step.record import OF_MOVED_GRADIENTS, OF_OTHER_NUMBERS, Entries, Operands, Record
from .clipping import Clipping
from .groups import CheckedGroup, Group
from .parts import PLAIN, Part

SCHEDULED = frozenset({"lr", "weight_decay", "keep_prob", "grad_weight", "momentum", "betas"})
UNREAD = frozenset({"_tables", "_checked_groups", "_maps", "_repeats", "_measured"})  # they follow from the others
FIRST_PATIENCE, MOST_PATIENCE, WORTHWHILE = 2, 256, 8  # steps


@dataclass(slots=True)
class _Piece:
    """A call that can be repeated, with the backend that took it; ``native`` is what the CPU's op takes."""

    group: Group
    checked: CheckedGroup
    call: StepCall
    backend: Backend
    native: TableStep | None

    def has_moved(self) -> None:
        """Take the addresses of gradients, which the host's table has, to the device's."""
        if self.native is None:
            with on(self.call.params[0].device):
                self.call.table.upload_gradients()

    def fits(self, checked: CheckedGroup) -> bool:
        """Whether the call stays the same but for its numbers, where this is what now follows from its group."""
        before = self.checked
        return (checked.wanted, checked.scalars) == (before.wanted, before.scalars)

    def tell(self, checked: CheckedGroup) -> None:
        """Take the numbers of a group that fits."""
        self.checked = checked
        for name, value in checked.arguments.items():
            setattr(self.call, name, value)
        self.call.hyper = checked.hyper
        if self.native is not None:
            self.native = TableStep(self.call)

    def step(self) -> None:
        if self.native is None:
            self.backend.step(self.call)
        else:
            self.native()


def _piece(part: Part, call: StepCall, backend: Backend, tables: dict[Any, Any]) -> _Piece | None:
    """The call as one that can be repeated; None where more than its tables and numbers decides on what it does."""
    told = call.sums, call.copies, call.norms, call.grad_scale, call.found_inf
    plain = not (part.sharded or call.staged or call.pieces) and all(value is None for value in told)
    if not plain or call.table is None or call.table is not tables.get(call.table_key):
        return None
    if not same([param.grad for param in call.params], call.grads):
        return None
    call.grads = []  # which come and go
    on_cpu = backend.step is native_step and call.params[0].is_cpu
    return _Piece(part.group, part.checked, call, backend, TableStep(call) if on_cpu else None)


class Repeats:
    """What an optimizer knows of its last step.

    A record takes longer to make than a step. The more of them were made in vain, the more steps are waited for.
    """

    def __init__(self) -> None:
        self._record: Record | None = None
        self._pieces: list[_Piece] = []
        self._clipping: Clipping | None = None
        self._devices: set[torch.device] = set()  # whose tables lie there
        self._patience, self._waited, self._repeated = FIRST_PATIENCE, 0, 0

    def __reduce__(self) -> Any:
        """Copies know nothing."""
        return Repeats, ()

    def forget(self) -> None:
        """The next step is taken as a whole."""
        if self._record is not None:
            in_vain = self._repeated < WORTHWHILE
            self._patience = min(2 * self._patience, MOST_PATIENCE) if in_vain else FIRST_PATIENCE
            self._record, self._pieces, self._clipping, self._waited, self._repeated = None, [], None, 0, 0

    def step(self, optimizer: Any) -> bool:
        """Take the step, if it repeats the one before; else forget that.

        Raises:
            ValueError, TypeError: a scheduled number is invalid; nothing has been changed.
        """
        if self._record is None:
            return False
        if any(map(is_captured, self._devices)) or not self._holds(self._record, optimizer):
            self.forget()
            return False
        self._repeated += 1
        if self._clipping is not None:
            optimizer._measured["grad_norm"] = self._clipping.measure([piece.backend for piece in self._pieces])
        for piece in self._pieces:
            piece.step()
        return True

    def _holds(self, record: Record, optimizer: Any) -> bool:
        try:
            told = record.compare(optimizer.__dict__)
            if told & OF_MOVED_GRADIENTS:
                for piece in self._pieces:
                    piece.has_moved()
        except BaseException:  # an interrupt, too, must not leave the device with other addresses than the host
            self.forget()
            raise
        return bool(told) and (not told & OF_OTHER_NUMBERS or self._take_numbers(record, optimizer))

    def _take_numbers(self, record: Record, optimizer: Any) -> bool:
        checked = {id(group): optimizer._checked_group(group) for group in optimizer.param_groups}
        of_pieces = [(piece, checked[id(piece.group)]) for piece in self._pieces]
        if not all(now.is_constant for now in checked.values()) or not all(piece.fits(now) for piece, now in of_pieces):
            return False
        for piece, now in of_pieces:
            piece.tell(now)
        record.take_numbers()
        return True

    def note(
        self,
        optimizer: Any,
        work: list[Part],
        calls: list[StepCall],
        backends: list[Backend],
        clipping: Clipping | None,
    ) -> None:
        """Make a record of a step that was just taken, if it can be repeated and enough like it were waited for."""
        self._waited += 1
        if self._waited < self._patience or not calls or len(work) != len(calls) or layout() is None:
            return
        params = list(optimizer._params())
        constant = all(optimizer._checked_group(group).is_constant for group in optimizer.param_groups)
        if not constant or not {*map(type, params)} <= PLAIN:
            return
        zipped = zip(work, calls, backends, strict=True)
        pieces = [_piece(part, call, backend, optimizer._tables) for part, call, backend in zipped]
        if not all(pieces):
            return
        self._pieces = [piece for piece in pieces if piece is not None]
        self._clipping = clipping
        self._devices = {piece.call.params[0].device for piece in self._pieces if piece.native is None}
        try:
            entries = Entries(optimizer.__dict__, SCHEDULED, UNREAD)
            self._record = Record(entries, _operands(self._pieces, params))
        except ValueError:
            self._pieces, self._clipping = [], None


def _operands(pieces: list[_Piece], params: list[Tensor]) -> Operands:
    """The tensors of all calls, and the parameters that have no gradient."""
    operands = Operands()
    for piece in pieces:
        call, table = piece.call, piece.call.table
        states = [column for column in (*call.states.values(), *call.scalar_states.values()) if column]
        states += columns_beside(call)
        table.watched.forget_gradients()  # which may move unseen
        for number, (param, count, *own) in enumerate(zip(call.params, call.steps, *states, strict=True)):
            operands.add(param, table.gradient_slot(number), count, *own)
    stepped = {param for piece in pieces for param in piece.call.params}
    for param in params:
        if param not in stepped:
            operands.add(param, None)
    return operands
