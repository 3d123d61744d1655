"""Tensors between steps: whether they are what they were and where they were, in as few passes as can be."""

from itertools import chain
from operator import attrgetter, ge, mul
from typing import Any

import torch
from torch import Tensor

from .host import addresses, ask_for, same, tensor_rows
from .operands import extent
from .record import TensorRecord, can_look, record_of

Columns = list[list[Tensor]]
_storage, _offset, _itemsize = Tensor.untyped_storage, Tensor.storage_offset, Tensor.element_size
_nbytes, _storage_address = torch.UntypedStorage.nbytes, torch.UntypedStorage.data_ptr
_dtype, _shape, _device = attrgetter("dtype"), attrgetter("shape"), attrgetter("device")


def _tensor_guards() -> Any:
    """Of torch.compile: private, but there since 2.0; without it a step of many small tensors takes a fourth more."""
    try:
        from torch._C._dynamo.guards import TensorGuards
    except ImportError:
        return None
    return TensorGuards


TensorGuards = _tensor_guards()


def _guards(tensors: list[Tensor]) -> Any:
    """Whether others are alike, in one pass: in type, dispatch keys (device, layout, what is lazy), dtype and strides.

    What this refuses may still do. It keeps no tensor alive. None where this torch has no such thing.
    """
    shapes, strides = ([list(get(t)) for t in tensors] for get in (Tensor.size, Tensor.stride))
    try:
        return TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check
    except TypeError:
        return None


def _lies(tensor: Tensor) -> bool | tuple[int, ...]:
    return tensor.is_contiguous() or tensor.stride()


def _layouts(tensors: list[Tensor]) -> tuple[list[Any], ...]:
    """Dtypes, shapes, devices and strides: lists of their own, which compare faster than one of tuples."""
    return tuple(list(map(of, tensors)) for of in (_dtype, _shape, _device, _lies))


def _are_alike(tensors: list[Tensor], layouts: tuple[list[Any], ...], guards: Any) -> bool:
    """Whether tensors, wherever they lie, are what those with these layouts and guards were, and not lazy."""
    return (guards is not None and guards(*tensors)) or (
        _layouts(tensors) == layouts and not any(map(Tensor.is_neg, tensors))
    )


def _have_memory(tensors: list[Tensor], at: list[int], extents: list[int]) -> bool:
    """Whether what lies at the addresses of these tensors is theirs; most have a storage of their own."""
    storages, offsets = list(map(_storage, tensors)), list(map(_offset, tensors))
    if any(offsets) or 0 in at:
        if any(map(Tensor._is_zerotensor, tensors)):
            return False
        there = map(_storage_address, storages)
        if not all(address or not own for address, own in zip(there, extents, strict=True)):
            return False
        before = map(mul, offsets, map(_itemsize, tensors))
        extents = [own and own + first for own, first in zip(extents, before, strict=True)]
    return all(map(ge, map(_nbytes, storages), extents))


class HeldTensors:
    """Tensors that are held, and what and where they were."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors, self._layouts = tensors, _layouts(tensors)
        self._addresses, self._extents = addresses(tensors), list(map(extent, tensors))
        self._record: TensorRecord | None = None
        self._guards: Any = None  # of torch, where there is no record
        self._looks = 0

    def have_stayed(self) -> bool:
        """Whether all are what they were, where they were, and their memory is theirs still."""
        if self._record is not None:
            return self._record.have_stayed()
        tensors, at = self._tensors, self._addresses
        stayed = (
            addresses(tensors) == at
            and _are_alike(tensors, self._layouts, self._guards)
            and _have_memory(tensors, at, self._extents)
        )
        self._looks += 1
        if stayed and self._looks == 2:  # what takes longer to make than one look
            self._record = record_of(tensors) if can_look() else None
            self._guards = _guards(tensors) if tensors and self._record is None else None
        return stayed


class Watched:
    """The tensors of a call: those that stay, in columns of one for each parameter, and the gradients, which may go.

    The columns are held, so that no address can be taken by another tensor meanwhile; gradients are not.

    Args:
        columns: the parameters, then states and counts.
        grads: of the parameters.
        guarded: whether :meth:`hold` will be asked.

    Attributes:
        grads: addresses of the gradients.
        guards: of torch, which tell whether gradients are what those before were; None where there are none.
    """

    def __init__(self, columns: Columns, grads: list[Tensor], guarded: bool = True) -> None:
        self._columns, self._held = columns, HeldTensors(list(chain.from_iterable(columns)))
        self.grads = addresses(grads)
        self._layouts, self._extents = _layouts(grads), list(map(extent, grads))
        self.guards = _guards(grads) if guarded and grads else None
        self._first_rows: Any = None
        self._looks = 0

    def forget_gradients(self) -> None:
        """The gradients may be others from now on, whatever their addresses."""
        self.grads = []

    def are_in(self, columns: Columns) -> bool:
        """Whether these are the very same tensors."""
        if len(columns) != len(self._columns) or not all(map(same, self._columns, columns)):
            return False
        self._columns = columns  # of which the next call may have the same lists
        return True

    def are_at(self, grads: list[Tensor]) -> bool:
        """Whether all tensors are what and where they were, and these gradients where those before were."""
        return self._held.have_stayed() and addresses(grads) == self.grads

    def hold(self, grads: list[Tensor]) -> bool:
        """Whether the tensors are what and where they were; ``grads`` may lie elsewhere, which is remembered."""
        if not (self._held.have_stayed() and _are_alike(grads, self._layouts, self.guards)):
            return False
        at = addresses(grads)
        if not _have_memory(grads, at, self._extents):
            return False
        self.grads = at
        self._looks += 1
        if self._looks == 2:
            self._first_rows = tensor_rows([*self._columns[0], *grads])
        return True

    def ask(self) -> None:
        """Ask for what a step looks at first, the objects of parameters and gradients."""
        ask_for(self._first_rows)
