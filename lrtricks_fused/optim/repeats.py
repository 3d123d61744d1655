"""Steps that repeat the one before: nothing is gathered, checked or built again where all of it is as it was.

A step is repeated where a record of it (step/record.py) says that optimizer, groups, options, states and tensors are
the same. Gradients may have moved, and scheduled numbers may have changed. Any other step is taken as a whole, and so
are all where the native library cannot look at Python's objects.
"""

from typing import Any

import torch
from torch import Tensor

from ..step.backends import Backend
from ..step.call import StepCall
from ..step.device import is_captured
from ..step.layouts import columns_beside
from ..step.record import COUNTED, OF_MOVED_GRADIENTS, OF_OTHER_NUMBERS, Entries, Operands, Record, can_look
from .checks import OF_SCALER, of_scaler
from .clipping import Clipping
from .groups import CheckedGroup
from .parts import PLAIN, Part
from .repeatable import RepeatableCall, repeatable
from .shards import dtensor_type, local, other_specs
from .sums import StepSums

SCHEDULED = frozenset({"lr", "weight_decay", "keep_prob", "grad_weight", "momentum", "betas", *OF_SCALER})
UNREAD = frozenset({"_tables", "_checked_groups", "_maps", "_repeats", "_measured"})  # they follow from the others
FIRST_PATIENCE, MOST_PATIENCE, WORTHWHILE = 2, 256, 8  # steps


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


class Repeats:
    """What an optimizer knows of its last step.

    A record takes longer to make than a step. The more of them were made in vain, the more steps are waited for.
    """

    def __init__(self) -> None:
        self._record: Record | None = None
        self._calls: list[RepeatableCall] = []
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
        self._calls, self._clipping, self._summed, self._with_tensors = [], None, None, []

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
            optimizer._measured["grad_norm"] = self._clipping.measure([each.backend for each in self._calls])
        if self._summed is not None:
            self._summed.begin_again()
        for each in self._calls:
            each.step()
        if self._summed is not None:
            optimizer._enter(self._summed.finish())

    def _holds(self, record: Record, optimizer: Any) -> bool:
        """Whether the step is the same; then its gradients are held, and its parameters count a version more."""
        holds = False
        try:
            told = self._told(record, optimizer)
            holds = bool(told) and (not told & OF_OTHER_NUMBERS or self._take_numbers(record, optimizer))
            if holds and not told & COUNTED and not record.count_versions():
                for each in self._calls:
                    each.count_versions()
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
                for each in self._calls:
                    each.has_moved()
            for checked in self._with_tensors if told else ():
                checked.check_tensors(optimizer)
        except BaseException:  # an interrupt, too, must not leave the device with other addresses than the host
            self.forget()
            raise
        return told

    def _take_numbers(self, record: Record, optimizer: Any) -> bool:
        checked = {id(group): optimizer._checked_group(group) for group in optimizer.param_groups}
        with_numbers = [(each, checked[id(each.group)]) for each in self._calls]
        scaler = of_scaler(optimizer)
        if not all(now.is_constant for now in checked.values()):
            return False
        if not all(each.fits(now, scaler) for each, now in with_numbers):
            return False
        for each, now in with_numbers:
            each.tell(now, scaler)
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
        calls = [repeatable(*of, optimizer) for of in steps]
        if not all(calls):
            return False
        self._calls = [each for each in calls if each is not None]
        self._clipping, self._summed = clipping, summed
        self._with_tensors = [checked for checked in groups if checked.tensors]
        self._devices = {each.call.params[0].device for each in self._calls if each.native is None}
        try:
            entries = Entries(optimizer.__dict__, SCHEDULED, UNREAD)
            operands = _operands(self._calls, params)
            for tensor in (tensor for checked in self._with_tensors for tensor in checked.tensors.values()):
                operands.hold(tensor)
            self._record = Record(entries, operands)
        except ValueError:
            self._drop()
        return self._record is not None


def _operands(calls: list[RepeatableCall], params: list[Tensor]) -> Operands:
    """The tensors of all calls, and the parameters that have no gradient."""
    operands = Operands()
    for each in calls:
        call, table = each.call, each.call.table
        parts = [*call.states.values(), *columns_beside(call)]
        states = [list(zip(*pair, strict=True)) for pair in zip(each.wholes[1:], parts, strict=True) if pair[0]]
        states += [list(zip(own, own, strict=True)) for own in call.scalar_states.values()]
        table.watched.forget_gradients()  # which may move unseen
        for number, (whole, part, count, *own) in enumerate(
            zip(each.wholes[0], call.params, call.steps, *states, strict=True)
        ):
            operands.add(whole, part, table.gradient_slot(number), count, *own)
    stepped = {param for each in calls for param in each.wholes[0]}
    for param in params:
        if param not in stepped:
            operands.add(param, local(param), None)
    for each in calls:
        if each.call.sums is not None:
            operands.hold(each.call.sums)
    return operands
