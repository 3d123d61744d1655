"""What the native library does with Python's own objects: whether dicts are what they were, and tensors; see record.py.

To look at a tensor from Python is a call, some 60 ns; of many small tensors those take longer than their step. The
library is handed addresses of objects, which are their ids, and functions of Python's C API. Where something is missing
for it, Python looks itself.

[note: Cold objects] A backward pass leaves nothing of an optimizer's own objects in the caches. A tensor is an object
of Python, one of C++ and a storage, some six lines of memory that are read one after the other, for each says where the
next one is. So the library asks for them ahead, by addresses that are remembered. One that no longer holds is asked for
in vain, and no harm is done.
"""

import ctypes
import functools
import platform
from collections.abc import Mapping, Sequence
from operator import attrgetter, is_
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

LIBRARY = Path(__file__).parents[1] / "_native.so"
_cdata = attrgetter("_cdata")


class _Functions:
    """Those of csrc/host_objects.h and host_step.h, and the functions that they are handed.

    Raises:
        ImportError, AttributeError, OSError: one of them is missing.
    """

    def __init__(self) -> None:
        native = ctypes.PyDLL(str(LIBRARY))  # which keeps Python's lock
        self.ask_for, self.has_entries = native.lrt_ask_for, native.lrt_has_entries
        self.ask_for.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self.ask_for.restype = None
        # csrc/host_step.h
        self.fits, self.record, self.repeats = native.lrt_fits, native.lrt_record, native.lrt_repeats
        self.fits.argtypes = [ctypes.c_int64] * 4
        self.record.argtypes = [ctypes.c_void_p] * 3
        self.repeats.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.py_object, ctypes.c_int]
        self.have_stayed, self.count_versions = native.lrt_tensors_have_stayed, native.lrt_count_versions
        self.let_go = native.lrt_let_go
        self.have_stayed.argtypes = self.count_versions.argtypes = self.let_go.argtypes = [ctypes.c_void_p] * 2
        self.let_go.restype = None
        self.has_entries.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p, ctypes.c_int64]
        self.next_entry = ctypes.cast(ctypes.pythonapi.PyDict_Next, ctypes.c_void_p)


@functools.cache
def functions() -> _Functions | None:
    """The functions of the library; None where something is missing for them."""
    if platform.python_implementation() != "CPython" or not LIBRARY.exists():
        return None
    try:
        return _Functions()
    except (ImportError, AttributeError, OSError):
        return None


def addresses(tensors: list[Tensor]) -> list[int]:
    """Of the memory of the tensors' first elements."""
    return list(map(Tensor.data_ptr, tensors))


def same(mine: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether both have the very same objects."""
    return mine is others or (len(mine) == len(others) and all(map(is_, mine, others)))


def integers(*columns: list[int]) -> Any:
    """An array of int64 with these columns: no tensor, which under some modes has no memory."""
    return numpy.array(columns, dtype=numpy.int64).T.copy()


def tensor_rows(tensors: list[Tensor]) -> Any:
    """The tensors' objects, to be asked for."""
    try:
        objects = [list(map(_cdata, tensors)), [_cdata(tensor.untyped_storage()) for tensor in tensors]]
    except AttributeError:
        objects = [[0] * len(tensors)] * 2
    return integers(list(map(id, tensors)), *objects)


def ask_for(rows: Any) -> None:
    """Ask for the memory of the objects of :func:`tensor_rows`, see the note."""
    known = functions()
    if known is not None and rows is not None:
        known.ask_for(rows.ctypes.data, len(rows))


def _entries(dicts: Mapping[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Keys and values of a dict, each followed by those of the value, where that is a dict."""
    keys: list[Any] = []
    values: list[Any] = []
    for key, value in dicts.items():
        keys.append(key)
        values.append(value)
        if isinstance(value, dict):
            keys += value.keys()
            values += value.values()
    return keys, values


class HeldEntries:
    """What the dicts in a dict have, by which objects these are."""

    def __init__(self, dicts: Mapping[Any, Any]) -> None:
        self._keys, self._values = _entries(dicts)
        self._rows: Any = None

    def hold(self, dicts: Mapping[Any, Any]) -> bool:
        """Whether all keys and values are the very same objects."""
        known = functions()
        if known is None:
            keys, values = _entries(dicts)
            return same(self._keys, keys) and same(self._values, values)
        if self._rows is None:
            self._rows = integers(list(map(id, self._keys)), list(map(id, self._values)))
        return bool(known.has_entries(known.next_entry, dicts, self._rows.ctypes.data, len(self._rows)))
