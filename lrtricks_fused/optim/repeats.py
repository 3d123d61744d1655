"""Steps that repeat the one before: nothing is gathered, checked or built again where all of it is as it was.

A step is repeated where a record of it (step/record.py) says that optimizer, groups, options, states and tensors are
the same. Gradients may have moved, and scheduled numbers may have changed. Any other step is taken as a whole, and so
are all where the native library cannot look at Python's objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..step.backends import Backend
from ..step.call import BESIDE, StepCall
from ..step.device import is_captured, on, scalar
from ..step.host import same
from ..step.layouts import columns_beside
from ..step.native import TableStep, native_step
from ..step.record import COUNTED, OF_MOVED_GRADIENTS, OF_OTHER_NUMBERS, Entries, Operands, Record, can_look
from .arguments import IN_TENSORS
from .checks import OF_SCALER, of_scaler
from .clipping import Clipping
from .groups import LOW, CheckedGroup, Group
from .parts import PLAIN, Part
from .shards import dtensor_type, local, other_specs
from .sums import StepSums

SCHEDULED = frozenset({"lr", "weight_decay", "keep_prob", "grad_weight", "momentum", "betas", *OF_SCALER})
UNREAD = frozenset({"_tables", "_checked_groups", "_maps", "_repeats", "_measured"})  # they follow from the others
FIRST_PATIENCE, MOST_PATIENCE, WORTHWHILE = 2, 256, 8  # steps


@dataclass(slots=True)
class _Piece:
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


def _piece(part: Part, call: StepCall, backend: Backend, optimizer: Any) -> _Piece | None:
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
    return _Piece(part.group, part.checked, call, backend, TableStep(call) if on_cpu else None, wholes)


def _are_read(values: list[Any], call: StepCall) -> bool:
    """Whether the kernels read those that are tensors, and not copies of them, which would know nothing of a change."""
    device = call.params[0].device
    return all(not isinstance(value, Tensor) or scalar(value, device) is value for value in values)


def _is_plain(optimizer: Any) -> bool:
    """Whether all that decides on a step is found by looking at the optimizer's attributes, dicts and lists."""
    groups = optimizer.param_groups
    return (
        not any(hasattr(type(optimizer), name) for name in (*OF_SCALER, "param_groups", "state"))
        and getattr(type(optimizer), "max_norm", None) is None
        and isinstance(optimizer.max_norm, (float, int, type(None)))
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group["params"], (list, tuple)) for group in groups)
    )


def _wholes_beside(call: StepCall, params: list[Any], optimizer: Any) -> Iterator[list[Any]]:
    """The columns of columns_beside: of DTensors the other halves of masters, which are states, are DTensors, too."""
    for name in BESIDE:
        for column in columns_beside(call, (name,)):
            is_state = name == "lows"
            yield [
                optimizer.state[param].get(LOW, own) if is_state else own
                for param, own in zip(params, column, strict=True)
            ]


class Repeats:
    """What an optimizer knows of its last step.

    A record takes longer to make than a step. The more of them were made in vain, the more steps are waited for.
    """

    def __init__(self) -> None:
        self._record: Record | None = None
        self._pieces: list[_Piece] = []
        self._clipping: Clipping | None = None
        self._summed: StepSums | None = None
        self._with_tensors: list[CheckedGroup] = []  # groups, of whose numbers tensors hold some
        self._devices: set[torch.device] = set()  # whose tables lie there
        self._patience, self._waited, self._repeated = FIRST_PATIENCE, 0, 0

    def __reduce__(self) -> Any:
        """Copies know nothing."""
        return Repeats, ()

    def forget(self) -> None:
        """The next step is taken as a whole."""
        if self._record is not None:
            self._wait(self._repeated < WORTHWHILE)
            self._record, self._repeated = None, 0
            self._drop()

    def _wait(self, in_vain: bool) -> None:
        """Wait for steps that are alike, the longer the more records were made in vain."""
        self._patience = min(2 * self._patience, MOST_PATIENCE) if in_vain else FIRST_PATIENCE
        self._waited = 0

    def _drop(self) -> None:
        """Hold nothing of a step."""
        self._pieces, self._clipping, self._summed, self._with_tensors = [], None, None, []

    def step(self, optimizer: Any) -> bool:
        """Take the step, if it repeats the one before; else forget that.

        Raises:
            ValueError, TypeError: a scheduled number is invalid; nothing has been changed.
        """
        record = self._record
        if record is None:
            return False
        if any(map(is_captured, self._devices)) or not self._holds(record, optimizer):
            self.forget()
            return False
        self._repeated += 1
        try:
            self._take(optimizer)
        finally:
            record.let_go()
        return True

    def _take(self, optimizer: Any) -> None:
        if self._clipping is not None:
            optimizer._measured["grad_norm"] = self._clipping.measure([piece.backend for piece in self._pieces])
        if self._summed is not None:
            self._summed.begin_again()
        for piece in self._pieces:
            piece.step()
        if self._summed is not None:
            optimizer._enter(self._summed.finish())

    def _holds(self, record: Record, optimizer: Any) -> bool:
        """Whether the step is the same; then its gradients are held, and its parameters count a version more."""
        holds = False
        try:
            told = self._told(record, optimizer)
            holds = bool(told) and (not told & OF_OTHER_NUMBERS or self._take_numbers(record, optimizer))
            if holds and not told & COUNTED and not record.count_versions():
                for piece in self._pieces:
                    piece.count_versions()
        finally:
            if not holds:
                record.let_go()
        return holds

    def _told(self, record: Record, optimizer: Any) -> int:
        try:
            told = record.compare(optimizer.__dict__, not self._with_tensors)
            if not told and (specs := other_specs(record.cut, record.specs)):
                record.take_specs(specs)
                told = record.compare(optimizer.__dict__, not self._with_tensors)
            if told & OF_MOVED_GRADIENTS:
                for piece in self._pieces:
                    piece.has_moved()
            for checked in self._with_tensors if told else ():
                checked.check_tensors(optimizer)
        except BaseException:  # an interrupt, too, must not leave the device with other addresses than the host
            self.forget()
            raise
        return told

    def _take_numbers(self, record: Record, optimizer: Any) -> bool:
        checked = {id(group): optimizer._checked_group(group) for group in optimizer.param_groups}
        of_pieces = [(piece, checked[id(piece.group)]) for piece in self._pieces]
        scaler = of_scaler(optimizer)
        if not all(now.is_constant for now in checked.values()):
            return False
        if not all(piece.fits(now, scaler) for piece, now in of_pieces):
            return False
        for piece, now in of_pieces:
            piece.tell(now, scaler)
        record.take_numbers(optimizer.__dict__)
        return True

    def note(
        self,
        optimizer: Any,
        work: list[Part],
        calls: list[StepCall],
        backends: list[Backend],
        clipping: Clipping | None,
        summed: StepSums | None,
    ) -> None:
        """Make a record of a step that was just taken, if it can be repeated and enough like it were waited for."""
        self._waited += 1
        if self._waited < self._patience or not calls or len(work) != len(calls) or not can_look():
            return
        if not self._is_recorded(optimizer, list(zip(work, calls, backends, strict=True)), clipping, summed):
            self._wait(in_vain=True)

    def _is_recorded(
        self,
        optimizer: Any,
        steps: list[tuple[Part, StepCall, Backend]],
        clipping: Clipping | None,
        summed: StepSums | None,
    ) -> bool:
        """Make the record, if the step can be repeated."""
        if not _is_plain(optimizer):
            return False
        params = list(optimizer._params())
        groups = [optimizer._checked_group(group) for group in optimizer.param_groups]
        if not all(checked.is_steady for checked in groups) or not all(
            kind in PLAIN or kind is dtensor_type() for kind in {*map(type, params)}
        ):
            return False
        pieces = [_piece(*of, optimizer) for of in steps]
        if not all(pieces):
            return False
        self._pieces = [piece for piece in pieces if piece is not None]
        self._clipping, self._summed = clipping, summed
        self._with_tensors = [checked for checked in groups if checked.tensors]
        self._devices = {piece.call.params[0].device for piece in self._pieces if piece.native is None}
        try:
            entries = Entries(optimizer.__dict__, SCHEDULED, UNREAD)
            operands = _operands(self._pieces, params)
            for tensor in (tensor for checked in self._with_tensors for tensor in checked.tensors.values()):
                operands.hold(tensor)
            self._record = Record(entries, operands)
        except ValueError:
            self._drop()
        return self._record is not None


def _operands(pieces: list[_Piece], params: list[Tensor]) -> Operands:
    """The tensors of all calls, and the parameters that have no gradient."""
    operands = Operands()
    for piece in pieces:
        call, table = piece.call, piece.call.table
        parts = [*call.states.values(), *columns_beside(call)]
        states = [list(zip(*pair, strict=True)) for pair in zip(piece.wholes[1:], parts, strict=True) if pair[0]]
        states += [list(zip(own, own, strict=True)) for own in call.scalar_states.values()]
        table.watched.forget_gradients()  # which may move unseen
        for number, (whole, part, count, *own) in enumerate(
            zip(piece.wholes[0], call.params, call.steps, *states, strict=True)
        ):
            operands.add(whole, part, table.gradient_slot(number), count, *own)
    stepped = {param for piece in pieces for param in piece.wholes[0]}
    for param in params:
        if param not in stepped:
            operands.add(param, local(param), None)
    for piece in pieces:
        if piece.call.sums is not None:
            operands.hold(piece.call.sums)
    return operands
