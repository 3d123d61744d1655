"""What Python and torch publish of their objects, by which the native library looks at them itself, see host.py.

Functions are found by their names. Where an object names its type, its implementation in C++, and this its storage, its
dispatch keys and its object, is found by looking for what Python says of some tensors: so it holds for the torch and
the Python that are here, or is not used.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import host

_WORD = ctypes.sizeof(ctypes.c_void_p)
_IMPLEMENTATION_BYTES = 192  # of c10::TensorImpl since torch 2.0, of which the keys are the last
_GRAD_OF = "_ZNK3c1010TensorImpl4gradEv"  # c10::TensorImpl::grad() const
_BUMP_VERSION = "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"  # torch::autograd::impl::bump_version


class HostLayout(ctypes.Structure):
    """As csrc/host_step.h has it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("next_entry", "list_size", "list_item", "take_reference")),
        *((name, ctypes.c_void_p) for name in ("drop_reference", "grad_of", "bump_version")),
        *((name, ctypes.c_int64) for name in ("type", "implementation", "storage", "keys", "object")),
    ]


def _samples() -> list[Tensor]:
    """Tensors that differ in what is looked for."""
    plain = torch.ones(3, dtype=torch.float32, device="cpu")
    return [plain, plain.double()[1:], torch._neg_view(plain), torch.nn.Parameter(plain.clone())]


def _place(samples: list[Tensor], start: Callable[[Any], int], size: int, value: Callable[[Any], int]) -> int:
    """The offset at which every sample has its value.

    Raises:
        ValueError: there is none, or more than one.
    """
    places = range(0, size - _WORD + 1, _WORD)
    found = [
        place
        for place in places
        if all(ctypes.c_uint64.from_address(start(t) + place).value == value(t) for t in samples)
    ]
    (place,) = found
    return place


def _place_or_none(find: Callable[[], int]) -> int:
    """What only some steps need; -1 where it is not found."""
    try:
        return find()
    except ValueError:
        return -1


def _bump_version(library: ctypes.CDLL, implementation: int) -> int | None:
    """Where the function is that counts a tensor's versions; None where there is none that does."""
    if not hasattr(library, _BUMP_VERSION):
        return None
    function = library[_BUMP_VERSION]
    function.argtypes, function.restype = [ctypes.c_void_p], None
    with torch.inference_mode(False):
        sample = torch.ones(3, device="cpu")
    before = sample._version
    function(id(sample) + implementation)
    return ctypes.cast(function, ctypes.c_void_p).value if sample._version == before + 1 else None


def _keys(tensor: Tensor) -> int:
    return torch._C._dispatch_keys(tensor).raw_repr()


@functools.cache
def _layout() -> HostLayout | None:
    try:
        return _found()
    except (AttributeError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _found() -> HostLayout:
    """Raises one of the errors above where something is missing."""
    samples, object_size = _samples(), Tensor.__basicsize__

    def implementation(tensor: Any) -> int:
        return tensor._cdata

    def in_implementation(value: Callable[[Any], int]) -> int:
        return _place(samples, implementation, _IMPLEMENTATION_BYTES, value)

    named = _place(samples, id, object_size, implementation)
    libraries, api = Path(torch.__file__).parent / "lib", ctypes.pythonapi
    c10, cpu = (ctypes.CDLL(str(libraries / f"lib{name}.so")) for name in ("c10", "torch_cpu"))
    of_python = (api.PyDict_Next, api.PyList_Size, api.PyList_GetItem, api.Py_IncRef, api.Py_DecRef)
    return HostLayout(
        *(ctypes.cast(function, ctypes.c_void_p) for function in (*of_python, c10[_GRAD_OF])),
        bump_version=_bump_version(cpu, named),
        type=_place(samples, id, object_size, lambda tensor: id(type(tensor))),
        implementation=named,
        storage=in_implementation(lambda tensor: tensor.untyped_storage()._cdata),
        keys=in_implementation(_keys),
        object=_place_or_none(lambda: in_implementation(id)),
    )


def layout() -> HostLayout | None:
    """What is published here; None where something is missing."""
    return None if host.functions() is None else _layout()
