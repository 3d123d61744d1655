"""Tensors between steps: whether they are what they were and where they were, in as few passes as can be."""

from itertools import chain
from operator import attrgetter, ge, mul
from typing import Any

import torch
from torch import Tensor

from .host import HeldTensors, addresses, ask_for, same, tensor_rows

PIECE = 128  # parameters whose tensors are looked at together: what is read of them stays in the second cache

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
    """Dtypes, shapes and strides: lists of their own, which compare faster than one of tuples."""
    return list(map(_dtype, tensors)), list(map(_shape, tensors)), list(map(_lies, tensors))


def _have_memory(grads: list[Tensor], at: list[int], nbytes: list[int]) -> bool:
    """Whether what lies at the addresses of dense gradients is theirs; most have a storage of their own."""
    storages, offsets = list(map(_storage, grads)), list(map(_offset, grads))
    if any(offsets) or 0 in at:
        if any(map(Tensor._is_zerotensor, grads)):
            return False
        there = map(_storage_address, storages)
        if not all(address or not size for address, size in zip(there, nbytes, strict=True)):
            return False
        before = map(mul, offsets, map(_itemsize, grads))
        nbytes = [size and size + first for size, first in zip(nbytes, before, strict=True)]
    return all(map(ge, map(_nbytes, storages), nbytes))


class _Piece:
    """Some parameters of a call with their states and counts, and the gradients that they had."""

    def __init__(self, columns: Columns, grads: list[Tensor], where: slice, guarded: bool) -> None:
        self.where = where
        self._held = HeldTensors(list(chain.from_iterable(column[where] for column in columns)))
        own = grads[where]
        self._layouts, self._devices = _layouts(self._held.tensors), list(map(_device, columns[0][where]))
        self._grad_layouts, self._nbytes = _layouts(own), [grad.nbytes for grad in own]
        self.grads = addresses(own)
        self.guards = _guards([*self._held.tensors, *own]) if guarded else None

    def is_at(self, grads: list[Tensor]) -> bool:
        """Whether all tensors are where they were, these gradients too, and those held lie as they did."""
        held = self._held
        return held.have_stayed() and addresses(grads) == self.grads and _layouts(held.tensors) == self._layouts

    def holds(self, grads: list[Tensor]) -> bool:
        """Whether these gradients can take the place of those before, and all else is what it was."""
        if not (self._held.have_stayed() and self._are_alike(self._held.tensors, grads)):
            return False
        at = addresses(grads)
        if at != self.grads:
            if not _have_memory(grads, at, self._nbytes):
                return False
            self.grads = at
        return True

    def _are_alike(self, held: list[Tensor], grads: list[Tensor]) -> bool:
        """Whether the tensors, whatever their addresses, are what those before were, and not lazy."""
        if self.guards is not None and self.guards(*held, *grads):
            return True
        return (
            _layouts(held) == self._layouts
            and _layouts(grads) == self._grad_layouts
            and list(map(_device, grads)) == self._devices
            and not any(map(Tensor.is_neg, chain(held, grads)))
        )


class Watched:
    """The tensors of a call: those that stay, in columns of one for each parameter, and the gradients, which may go.

    The columns are held, so that no address can be taken by another tensor meanwhile; gradients are not.

    Args:
        columns: the parameters, then states and counts.
        grads: of the parameters.
        guarded: whether :meth:`hold` will be asked.
    """

    def __init__(self, columns: Columns, grads: list[Tensor], guarded: bool = True) -> None:
        self._columns, count = columns, len(grads)
        self._pieces = [
            _Piece(columns, grads, slice(first, min(first + PIECE, count)), guarded)
            for first in range(0, count, PIECE)
        ]  # fmt: skip
        self._first_rows: Any = None
        self._looks = 0

    @property
    def grads(self) -> list[int]:
        """Addresses of the gradients."""
        return list(chain.from_iterable(piece.grads for piece in self._pieces))

    def forget_gradients(self) -> None:
        """The gradients may be others from now on, whatever their addresses."""
        for piece in self._pieces:
            piece.grads = []

    @property
    def guarded(self) -> bool:
        """Whether torch's guards tell what the tensors are."""
        return all(piece.guards is not None for piece in self._pieces)

    def are_in(self, columns: Columns) -> bool:
        """Whether these are the very same tensors."""
        if len(columns) != len(self._columns) or not all(map(same, self._columns, columns)):
            return False
        self._columns = columns  # of which the next call may have the same lists
        return True

    def are_at(self, grads: list[Tensor]) -> bool:
        """Whether all tensors are where they were, these gradients too, and the parameters lie as they did."""
        return all(piece.is_at(grads[piece.where]) for piece in self._pieces)

    def hold(self, grads: list[Tensor]) -> bool:
        """Whether the tensors are what and where they were; ``grads`` may lie elsewhere, which is remembered."""
        if not all(piece.holds(grads[piece.where]) for piece in self._pieces):
            return False
        self._looks += 1
        if self._looks == 2:
            first = [*self._columns[0], *grads]
            self._first_rows = tensor_rows(first, [0] * len(first))
        return True

    def ask(self) -> None:
        """Ask for what a step looks at first, the objects of parameters and gradients."""
        ask_for(self._first_rows)
