"""Attributes in slots between steps: whether many objects hold the very same ones, told in one pass over memory.

A slot is a word of an object that holds the address of the attribute's value. Python does not say where it is, so it is
looked for: it has been found where just one word of every object names the object's own value. Where none is found, and
where there is no library, Python asks for every attribute.
"""

import ctypes
import functools
from operator import attrgetter
from types import MemberDescriptorType
from typing import Any

import numpy

from . import host

WORD = 8  # bytes


@functools.cache
def _of_library() -> Any:
    """The function of csrc/host_slots.h; None of a library without."""
    function = getattr(ctypes.PyDLL(str(host.LIBRARY)), "lrt_slots_hold", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return function


def _slots_hold() -> Any:
    """The same; None where Python looks itself."""
    return None if host.functions() is None else _of_library()


def _is_slot(kind: type, name: str) -> bool:
    attribute = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return type(attribute) is MemberDescriptorType


def _place(thing: Any, value: Any) -> int | None:
    """Of a value in a slot of this object the only place where it is; None where there are more."""
    words = (ctypes.c_int64 * (type(thing).__basicsize__ // WORD)).from_address(id(thing))
    places = [number for number, word in enumerate(words) if word == id(value)]
    return places[0] * WORD if len(places) == 1 else None


def place_of(thing: Any, name: str) -> int | None:
    """Where in an object the slot of an attribute is, in bytes; None where it is not found."""
    return _place(thing, getattr(thing, name)) if _is_slot(type(thing), name) else None


def _rows(things: list[Any], name: str, values: list[Any]) -> list[tuple[int, int]] | None:
    """Where in memory the slots are, with the addresses that they hold; None where they are not found."""
    if not all(_is_slot(kind, name) for kind in {*map(type, things)}):
        return None
    places: dict[type, int] = {}
    rows = []
    for thing, value in zip(things, values, strict=True):
        place = _place(thing, value)
        if place is None or places.setdefault(type(thing), place) != place:
            return None
        rows.append((id(thing) + place, id(value)))
    return rows


class HeldSlots:
    """Objects that are held, and the values of some of their attributes.

    Args:
        things: the objects.
        names: of the attributes, which all of them have.
    """

    def __init__(self, things: list[Any], *names: str) -> None:
        self._things, self._names = things, names
        self._values = [list(map(attrgetter(name), things)) for name in names]
        self._words: Any = None
        self._looks = 0

    def of(self, name: str) -> list[Any]:
        """The values of an attribute."""
        return self._values[self._names.index(name)]

    def hold(self) -> bool:
        """Whether all attributes are the very same objects."""
        known = _slots_hold()
        self._looks += 1
        if known is not None and self._looks == 2:  # what it needs takes longer to make than one look
            found = [_rows(self._things, name, values) for name, values in zip(self._names, self._values, strict=True)]
            if None not in found:
                rows = [row for rows in zip(*found, strict=True) for row in rows]
                self._words = numpy.array(rows, dtype=numpy.int64)
        if known is not None and self._words is not None:
            return bool(known(self._words.ctypes.data, len(self._words)))
        return all(
            host.same(values, list(map(attrgetter(name), self._things)))
            for name, values in zip(self._names, self._values, strict=True)
        )
