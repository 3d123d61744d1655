"""What the native library says of Python's own objects: whether tensors and dicts are what they were.

To look at a tensor from Python is a call, some 60 ns; of many small tensors those take longer than their step. The
library is handed addresses of objects, which are their ids, and two functions: one by which code that torch compiles
asks a tensor for its memory, and PyDict_Next of Python's C API. Where one of them is missing, Python looks itself.

[note: Cold objects] A backward pass leaves nothing of an optimizer's own objects in the caches. A tensor is an object
of Python, one of C++ and a storage, some six lines of memory that are read one after the other, for each says where the
next one is. So the library asks for them ahead, by addresses that are remembered. One that no longer holds is asked for
in vain, and no harm is done.
"""

import ctypes
import functools
import platform
from collections.abc import Mapping
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
        from torch._C._dynamo import guards

        found: Any = guards  # of which type checkers know less than there is

        native = ctypes.PyDLL(str(LIBRARY))  # which keeps Python's lock
        self.ask_for, self.have_stayed = native.lrt_ask_for, native.lrt_have_stayed
        self.has_entries = native.lrt_has_entries
        self.ask_for.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self.ask_for.restype = None
        self.have_stayed.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        # csrc/host_step.h
        self.fits, self.record, self.repeats = native.lrt_fits, native.lrt_record, native.lrt_repeats
        self.fits.argtypes = [ctypes.c_int64] * 4
        self.record.argtypes = [ctypes.c_void_p] * 3
        self.repeats.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.py_object, ctypes.c_int]
        self.count_versions, self.let_go = native.lrt_count_versions, native.lrt_let_go
        self.count_versions.argtypes, self.let_go.argtypes = [ctypes.c_void_p] * 2, [ctypes.c_void_p]
        self.let_go.restype = None
        self.has_entries.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p, ctypes.c_int64]
        self.address_of = int(found._torchinductor_pyobject_tensor_data_ptr)
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


def same(mine: list[Any], others: list[Any]) -> bool:
    """Whether both lists have the very same objects."""
    return mine is others or (len(mine) == len(others) and all(map(is_, mine, others)))


def integers(*columns: list[int]) -> Any:
    """An array of int64 with these columns: no tensor, which under some modes has no memory."""
    return numpy.array(columns, dtype=numpy.int64).T.copy()


def tensor_rows(tensors: list[Tensor], at: list[int]) -> Any:
    """The tensors as the library knows them, the address of whose elements is ``at``."""
    try:
        objects = [list(map(_cdata, tensors)), [_cdata(tensor.untyped_storage()) for tensor in tensors]]
    except AttributeError:
        objects = [[0] * len(tensors)] * 2
    return integers(list(map(id, tensors)), *objects, at)


def ask_for(rows: Any) -> None:
    """Ask for the memory of these tensors' objects, see the note."""
    known = functions()
    if known is not None and rows is not None:
        known.ask_for(rows.ctypes.data, len(rows))


class HeldTensors:
    """Tensors that are held, and where their elements were."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors, self._addresses = tensors, addresses(tensors)
        self._rows: Any = None
        self._looked = False

    def have_stayed(self) -> bool:
        """Whether the elements of all are where they were."""
        known = functions()
        if known is not None and self._looked:
            if self._rows is None:  # which take longer to make than one look
                self._rows = tensor_rows(self.tensors, self._addresses)
            return bool(known.have_stayed(known.address_of, self._rows.ctypes.data, len(self.tensors)))
        self._looked = True
        return addresses(self.tensors) == self._addresses


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
