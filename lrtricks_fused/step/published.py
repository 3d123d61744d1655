"""What Python and torch publish of their objects, by which the native library looks at them itself, see host.py.

Functions are found by their names. Where an object names its type, its implementation in C++, and this its storage, its
dispatch keys and its object, is found by looking for what Python says of some tensors: so it holds for the torch and
the Python that are here, or is not used. So is what else a tensor's implementation and its storage have in fields; if
that is not found, the library asks torch's functions for it, which takes five times as long.
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
_STORAGE_BYTES = 64  # of c10::StorageImpl, at least
_FIELDS = "sizes", "offset", "kind", "data", "bytes", "deleter"
_INLINE_DIMS = 5  # kInlineDims of csrc/host_look.h
_GRAD_OF = "_ZNK3c1010TensorImpl4gradEv"  # c10::TensorImpl::grad() const
WEAK_REFERENCE: Any = getattr(torch._C, "_WeakTensorRef", None)  # to an implementation, whose memory stays; or None
_BUMP_VERSION = "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"  # torch::autograd::impl::bump_version


class HostLayout(ctypes.Structure):
    """As csrc/host_step.h has it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("next_entry", "list_size", "list_item", "take_reference")),
        *((name, ctypes.c_void_p) for name in ("drop_reference", "grad_of", "bump_version")),
        *((name, ctypes.c_int64) for name in ("type", "implementation", "storage", "keys", "object")),
        *((name, ctypes.c_int64) for name in _FIELDS),
    ]


def _samples() -> list[Tensor]:
    """Tensors that differ in what is looked for."""
    plain = torch.ones(3, dtype=torch.float32, device="cpu")
    return [plain, plain.double()[1:], torch._neg_view(plain), torch.nn.Parameter(plain.clone())]


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _place(samples: list[Any], start: Callable[[Any], int], size: int, value: Callable[[Any], int]) -> int:
    """The offset at which every sample has its value.

    Raises:
        ValueError: there is none, or more than one.
    """
    places = range(0, size - _WORD + 1, _WORD)
    found = [place for place in places if all(_word(start(t) + place) == value(t) for t in samples)]
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


def _changed(start: int, size: int, change: Callable[[], Any]) -> set[int]:
    """The offsets of the words that are others while what the change makes is there."""
    places = range(0, size - _WORD + 1, _WORD)
    before = [_word(start + place) for place in places]
    made = change()
    changed = {place for place, old in zip(places, before, strict=True) if _word(start + place) != old}
    del made
    return changed


def _fields(keys: int) -> dict[str, int]:
    """Where an implementation, whose keys are there, and a storage have the rest of what is asked of a tensor.

    Raises:
        ValueError: something is not found, or not where it belongs.
    """
    memory = torch.arange(2000, dtype=torch.float32, device="cpu")
    views = [
        memory.as_strided((3, 5, 7), (131, 17, 2), 19),
        memory.clone().as_strided((41,), (3,), 43),
        memory[:1500].double().as_strided((23, 29), (31, 1), 37),
    ]
    storages = [view.untyped_storage() for view in views]

    def in_implementation(value: Callable[[Any], int]) -> int:
        return _place(views, lambda tensor: tensor._cdata, _IMPLEMENTATION_BYTES, value)

    sizes, kind = in_implementation(lambda tensor: tensor.size(0)), keys - _WORD
    beside = [
        in_implementation(lambda tensor: tensor.dim()),
        in_implementation(lambda tensor: tensor.stride(0)),
        in_implementation(lambda tensor: tensor.numel()),
    ]
    if beside != [sizes - _WORD, sizes + _INLINE_DIMS * _WORD, kind - _WORD]:
        raise ValueError(f"Invalid fields: {beside} beside {sizes}, {keys}")
    dtypes = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16
    of_kinds = [torch.empty(3, dtype=dtype, device="cpu") for dtype in dtypes]
    of_kinds.append(torch.empty(3, dtype=torch.float32, device="meta"))
    kinds = {_word(tensor._cdata + kind) for tensor in of_kinds}
    if len(kinds) != len(of_kinds) or _word(memory._cdata + kind) not in kinds:
        raise ValueError("Invalid fields: dtype and device are not before the keys")
    data = min(  # it may be what the memory is freed by, too
        place
        for place in range(0, _STORAGE_BYTES, _WORD)
        if all(_word(storage._cdata + place) == storage.data_ptr() for storage in storages)
    )
    # Of the two words behind it one is what frees the memory, and one what that is told. Memory that is shared until it
    # is written to has another in both.
    shared = memory.clone()
    change = _changed(shared.untyped_storage()._cdata, _STORAGE_BYTES, lambda: torch._lazy_clone(shared))
    (deleter,) = (
        place
        for place in change & {data + _WORD, data + 2 * _WORD}
        if len({_word(storage._cdata + place) for storage in storages}) == 1
    )
    return dict(
        sizes=sizes,
        offset=in_implementation(lambda tensor: tensor.storage_offset()),
        kind=kind,
        data=data,
        bytes=_place(storages, lambda storage: storage._cdata, _STORAGE_BYTES, lambda storage: storage.nbytes()),
        deleter=deleter,
    )


@functools.cache
def _layout() -> HostLayout | None:
    try:
        return _found()
    except (AttributeError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _fields_or_none(keys: int) -> dict[str, int]:
    """The same; -1, of all, where something is missing."""
    try:
        return _fields(keys)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return dict.fromkeys(_FIELDS, -1)


def _found() -> HostLayout:
    """Raises one of the errors above where something is missing."""
    samples, object_size = _samples(), Tensor.__basicsize__

    def implementation(tensor: Any) -> int:
        return tensor._cdata

    def in_implementation(value: Callable[[Any], int]) -> int:
        return _place(samples, implementation, _IMPLEMENTATION_BYTES, value)

    named = _place(samples, id, object_size, implementation)
    libraries, api = Path(torch.__file__).parent / "lib", ctypes.pythonapi
    keys = in_implementation(_keys)
    c10, cpu = (ctypes.CDLL(str(libraries / f"lib{name}.so")) for name in ("c10", "torch_cpu"))
    of_python = (api.PyDict_Next, api.PyList_Size, api.PyList_GetItem, api.Py_IncRef, api.Py_DecRef)
    return HostLayout(
        *(ctypes.cast(function, ctypes.c_void_p) for function in (*of_python, c10[_GRAD_OF])),
        bump_version=_bump_version(cpu, named),
        type=_place(samples, id, object_size, lambda tensor: id(type(tensor))),
        implementation=named,
        storage=in_implementation(lambda tensor: tensor.untyped_storage()._cdata),
        keys=keys,
        object=_place_or_none(lambda: in_implementation(id)) if WEAK_REFERENCE is not None else -1,
        **_fields_or_none(keys),
    )


def layout() -> HostLayout | None:
    """What is published here; None where something is missing."""
    return None if host.functions() is None else _layout()
