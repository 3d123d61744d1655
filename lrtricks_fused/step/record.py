"""The record of a step: all that it was made of, to tell in one call of the native library whether the next is alike.

[note: What is recorded] Of an optimizer all attributes, and what the dicts and lists among them have, by which objects
these are: groups, options, parameters, states, hooks. Of parameters, states and counts where they are, and what they
are, which an address alone does not say. Of gradients what they are; where, may change. Of DTensors which tensors are
in them, and by which objects they are cut: a gradient's is its parameter's, as torch has it after a backward pass, or
another that is known to say the same. Everything but the gradients is held, so that no other object can take an address
meanwhile.
"""

import ctypes
from typing import Any

import numpy
from torch import Tensor

from . import host
from .published import WEAK_REFERENCE, HostLayout, layout
from .slots import place_of

_MOST_DEPTH = 4  # attributes, groups, a group, its parameters
_FIXED_WORDS = 15  # of a StepTensor of csrc/host_step.h
_BLOCK = 64  # rows, at least

# Plain integers, of which there are many.
_OBJECT, _SCHEDULED, _DICT, _LIST, _END = range(5)  # HostEntryKind of csrc/host_step.h
# StepTensorRole
_HELD, _COUNT, _GRADIENT, _NONE, _WRAPPER, _WRAPPED_GRADIENT, _WRAPPED_PARAM, _WRAPPED_STATE = range(8)
# What is told of a step, bits; 0: it is another. Plain integers, which a step asks without a call.
SAME, OF_OTHER_NUMBERS, OF_MOVED_GRADIENTS, COUNTED = 1, 2, 4, 8


class _StepRecord(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("entries", "wrapper", "tensors", "blocks")),
        ("count", ctypes.c_int64),
        ("held", ctypes.c_void_p),
        ("specs", ctypes.c_void_p),
        ("gradients", ctypes.c_int64),
    ]


class _HostWrapper(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("type", "wrapped_type", "wrapped", "spec")]


def _lookers() -> tuple[Any, HostLayout] | None:
    """The functions that look at objects here, and what they need to know of these.

    None where there is no library, or one of other sources.
    """
    known, there = host.functions(), layout()
    sizes = [*map(ctypes.sizeof, (HostLayout, _HostWrapper, _StepRecord)), _FIXED_WORDS * ctypes.sizeof(ctypes.c_int64)]
    return (known, there) if known is not None and there is not None and known.fits(*sizes) else None


def can_look() -> bool:
    """Whether the native library can look at objects here: it is there, and of the same sources."""
    return _lookers() is not None


def _wrapper(sample: Any) -> _HostWrapper:
    """What is known of DTensors.

    Raises:
        ValueError: where they have what is asked of them is not found.
    """
    places = [place_of(sample, name) for name in ("_local_tensor", "_spec")]
    if None in places:
        raise ValueError("Invalid record: a DTensor does not tell what it holds")
    return _HostWrapper(id(type(sample)), id(Tensor), *places)


class Operands:
    """The tensors of a record, as its rows. What is added may be a DTensor: then this rank's part of it is, too."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.given: list[int] = []  # a StepTensorOf of each row
        self.words = 0
        self.blocks: list[int] = []  # where each begins, in words
        self._next_block = 0  # the first row that may begin one
        self.wrapper: Any = None  # one of those, if there is any
        self.gradients = 0
        self.cut: dict[int, Any] = {}  # the DTensors that have a gradient, by its number

    def _begin(self) -> None:
        """What comes next asks for no row before it."""
        row = len(self.given) // 3
        if row >= self._next_block:
            self.blocks.append(self.words)
            self._next_block = row + _BLOCK

    def _add(self, role: int, at: int = 0, dims: int = 0, slot: int = 0) -> None:
        self.words += _FIXED_WORDS + 2 * dims
        self.given += role, at, slot

    def hold(self, tensor: Tensor) -> None:
        """Any other tensor, which must stay where and what it is; what is in it may be other numbers."""
        self._begin()
        self._hold(tensor)

    def _hold(self, tensor: Any, role: int = _HELD, slot: int = 0) -> None:
        self.held.append(tensor)
        self._add(role, id(tensor), 0 if role == _WRAPPER else tensor.dim(), slot)

    def _hold_wrapped(self, tensor: Tensor, role: int, wrapper: Any) -> None:
        """What the library knows by its implementation in C++, which stays even if another object takes it over."""
        self.held += wrapper, WEAK_REFERENCE and WEAK_REFERENCE(tensor)
        self._hold(tensor, role, id(wrapper))

    def add(
        self, param: Any, part: Tensor, slot: int | None, count: Tensor | None = None, *states: tuple[Any, Tensor]
    ) -> None:
        """A parameter with its count and states, and of each DTensor among them this rank's part (else itself again).

        ``slot``: the address at which its gradient's is kept; None: it has no gradient.
        """
        self._begin()
        wraps = param is not part
        if wraps:
            self.wrapper = param
        self._hold(param, _WRAPPER if wraps else _HELD, 1)
        if slot is None:
            return self._add(_NONE)
        self._add(_WRAPPED_GRADIENT if wraps else _GRADIENT, 0, part.dim(), slot)
        if wraps:
            self.cut[self.gradients] = param
            self._hold_wrapped(part, _WRAPPED_PARAM, param)
        self.gradients += 1
        if count is not None:
            self._hold(count, _COUNT if count.is_cpu else _HELD)
        for state, own in states:
            if state is own:
                self._hold(own)
            else:
                self._hold_wrapped(own, _WRAPPED_STATE, state)


class Entries:
    """The attributes of an optimizer, with what dicts and lists among them have, as rows of csrc/host_step.h.

    Args:
        attributes: of the optimizer.
        scheduled: names of entries whose values may be other numbers, which is told.
        unread: names of attributes whose entries are not looked at, and which are not held.
    """

    def __init__(self, attributes: dict[str, Any], scheduled: frozenset[str], unread: frozenset[str]) -> None:
        self._scheduled, self._unread = scheduled, unread
        self.held: list[Any] = []
        self.rows: list[int] = []  # three of each
        # Where those scheduled are, by their rows; None: among the attributes, which must not be held by one of them.
        self.numbers: dict[int, tuple[Any, Any]] = {}
        self._enter(attributes, 1)

    def _enter(self, container: Any, depth: int) -> None:
        is_dict = isinstance(container, dict)
        for key, value in container.items() if is_dict else ((None, item) for item in container):
            kind = self._kind(key, value, depth)
            if kind == _SCHEDULED:
                self.numbers[len(self.rows) // 3] = None if depth == 1 else container, key
            self.rows += id(key) if is_dict else 0, id(value), kind
            if not self._is_unread(key, depth):
                self.held += [key, value]
            if kind in (_DICT, _LIST):
                self._enter(value, depth + 1)
        self.rows += 0, 0, _END

    def _is_unread(self, key: Any, depth: int) -> bool:
        return depth == 1 and key in self._unread

    def _kind(self, key: Any, value: Any, depth: int) -> int:
        if depth < _MOST_DEPTH and isinstance(value, (dict, list)) and not self._is_unread(key, depth):
            return _DICT if isinstance(value, dict) else _LIST
        return _SCHEDULED if type(key) is str and key in self._scheduled else _OBJECT


class TensorRecord:
    """Of tensors that are held.

    Args:
        operands: the tensors.
        entries: the address of the rows of entries that belong to them.

    Raises:
        ValueError: the library cannot look at these.
    """

    def __init__(self, operands: Operands, entries: int | None = None) -> None:
        lookers = _lookers()
        if lookers is None:
            raise ValueError("Invalid record: the native library cannot look at objects here")
        known, there = lookers
        self._tensors_held = operands.held
        self._blocks = host.integers([*operands.blocks, operands.words])
        self._tensors = numpy.empty(operands.words, dtype=numpy.int64)
        self._gradients = numpy.zeros((operands.gradients, 2), dtype=numpy.int64)
        self._specs = numpy.zeros(operands.gradients, dtype=numpy.int64)
        self._cut_at, self.cut = list(operands.cut), list(operands.cut.values())
        self.take_specs([param.grad._spec for param in self.cut])
        wrapper = None if operands.wrapper is None else _wrapper(operands.wrapper)
        self._wrapper = wrapper
        self._record = _StepRecord(
            entries, None if wrapper is None else ctypes.addressof(wrapper),
            self._tensors.ctypes.data, self._blocks.ctypes.data, len(operands.blocks),
            self._gradients.ctypes.data, self._specs.ctypes.data, len(self._gradients),
        )  # fmt: skip
        self._known = known
        self._places = ctypes.addressof(there), ctypes.addressof(self._record)
        given = host.integers(operands.given)
        if not known.record(self._places[0], given.ctypes.data, self._places[1]):
            raise ValueError("Invalid record: a tensor does not tell where it is")

    def take_specs(self, specs: list[Any]) -> None:
        """From now on these objects are known to cut the gradients of ``cut``, DTensors, as they are cut themselves."""
        self.specs = specs
        self._specs[self._cut_at] = list(map(id, specs))

    def have_stayed(self) -> bool:
        """Whether the tensors, if none of them is a gradient, are what and where they were."""
        return bool(self._known.have_stayed(*self._places))


def record_of(tensors: list[Tensor]) -> TensorRecord | None:
    """A record of tensors as they are; None where they do not say where that is."""
    operands = Operands()
    for tensor in tensors:
        operands.hold(tensor)
    try:
        return TensorRecord(operands)
    except ValueError:
        return None


class Record(TensorRecord):
    """Of one step.

    Args:
        entries: of the optimizer.
        operands: of the step.

    Raises:
        ValueError: the library cannot look at these.
    """

    def __init__(self, entries: Entries, operands: Operands) -> None:
        self._entries_held, self._numbers = entries.held, entries.numbers
        self._entries = numpy.array(entries.rows, dtype=numpy.int64).reshape(-1, 3)
        super().__init__(operands, self._entries.ctypes.data)
        self._look, self._count, self._let_go = self._known.repeats, self._known.count_versions, self._known.let_go

    def compare(self, attributes: dict[str, Any], counts: bool = True) -> int:
        """Whether a step would be the same: ``SAME`` and what else is to be told of it, or 0.

        Where gradients have moved, the tables say so already; where the step is another, nothing has been written. The
        gradients are held until :meth:`let_go`. If it ``counts``, and the numbers are the same, so that nothing can be
        wrong with the step any more, what is stepped counts a version more: ``COUNTED``, if that can be told.
        """
        return self._look(*self._places, attributes, counts)

    def count_versions(self) -> bool:
        """Have what is stepped count a version more; whether that could be told."""
        return bool(self._count(*self._places))

    def let_go(self) -> None:
        """Hold the gradients no longer."""
        self._let_go(*self._places)

    def take_numbers(self, attributes: dict[str, Any]) -> None:
        """From now on the scheduled numbers are those that they are now."""
        places = self._numbers.values()
        self._values = [(attributes if it is None else it)[key] for it, key in places]  # which are held
        for row, value in zip(self._numbers, self._values, strict=True):
            self._entries[row, 1] = id(value)
