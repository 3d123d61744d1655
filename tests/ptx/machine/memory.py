"""Memory that kernels may touch: registered tensors, at their own addresses. Every access is checked."""

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from .races import Access, Touched, find_races

ALIGN = 64


class MemoryFault(Exception):
    """An access that a GPU would refuse, or that touches what it must not."""


@dataclass(frozen=True)
class Allocation:
    """Bytes [begin, end) that a kernel may read, and write if ``writable``."""

    begin: int
    end: int
    writable: bool


def allocation_of(tensor: torch.Tensor, writable: bool) -> Allocation | None:
    """The bytes from a tensor's first element to its last, gaps included; None if it has none."""
    if tensor.numel() == 0:
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Allocation(tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size(), writable)


class Memory:
    """The allocations that are registered at present, and a launch's accesses to them."""

    def __init__(self) -> None:
        self.register([])

    def register(self, allocations: Iterable[Allocation]) -> None:
        """These and no others may be accessed; where they overlap, what one of them allows."""
        self._accesses: list[Access] = []  # of the launch
        self._touched: Touched | None = None
        merged: list[Allocation] = []
        for this in sorted(allocations, key=lambda a: (a.begin, -a.end)):
            last = merged[-1] if merged else None
            if last is None or this.begin >= last.end:
                merged.append(this)
            elif this.end <= last.end and this.writable <= last.writable:
                continue
            elif (this.begin, this.end) == (last.begin, last.end) or this.writable == last.writable:
                merged[-1] = Allocation(last.begin, max(last.end, this.end), this.writable or last.writable)
            else:
                raise ValueError(f"{this} and {last} overlap")
        self._begins = np.array([a.begin for a in merged], np.int64)
        self._ends = np.array([a.end for a in merged], np.int64)
        self._writable = np.array([a.writable for a in merged], bool)
        sizes = [-(-(a.end - a.begin + a.begin % ALIGN) // ALIGN) * ALIGN for a in merged]
        places = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]) if merged else np.zeros(1, np.int64)
        self._shift = places[:-1] - (self._begins // ALIGN * ALIGN) if merged else self._begins  # to offsets
        self._total = int(places[-1])
        self._base = int(self._begins[0]) // ALIGN * ALIGN if merged else 0
        span = (int(self._ends.max()) - self._base + ALIGN - 1) // ALIGN * ALIGN if merged else 0
        self._views: dict[tuple[int, int], np.ndarray] = {}
        self._span = span

    def _view(self, size: int, count: int) -> np.ndarray:
        """All memory from the first allocation to the last, of which only what is registered is touched."""
        if (size, count) not in self._views:
            flat = np.frombuffer((ctypes.c_uint8 * self._span).from_address(self._base), np.uint8)
            whole = flat[: self._span // (size * count) * size * count].view(f"u{size}")
            self._views[size, count] = whole.reshape(-1, count)
        return self._views[size, count]

    def _check(self, addresses: np.ndarray, size: int, writes: bool, text: str) -> np.ndarray:
        """The allocations of the addresses."""
        if (addresses % size).any():
            bad = int(addresses[addresses % size != 0][0])
            raise MemoryFault(f"{bad:#x} is not aligned to {size} bytes: {text}")
        if not len(self._begins):
            raise MemoryFault(f"nothing is registered: {text}")
        found = np.searchsorted(self._begins, addresses, side="right") - 1
        outside = (found < 0) | (addresses + size > self._ends[found])
        if outside.any():
            bad = int(addresses[outside][0])
            near = self._ends[found[outside][0]]
            raise MemoryFault(f"{bad:#x} is in no registered tensor (one ends at {int(near):#x}): {text}")
        if writes and not self._writable[found].all():
            raise MemoryFault(f"{int(addresses[~self._writable[found]][0]):#x} is read-only: {text}")
        return found

    def load(self, addresses: np.ndarray, size: int, count: int) -> np.ndarray:
        """``count`` numbers of ``size`` bytes from each address, which have been noted."""
        return self._view(size, count)[(addresses - self._base) // (size * count)]

    def store(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Writes the rows of ``values`` to the addresses, which have been noted."""
        size, count = values.itemsize, values.shape[1]
        self._view(size, count)[(addresses - self._base) // (size * count)] = values

    def note(self, access: Access) -> None:
        """Checks an access to addresses, and remembers who made it."""
        found = self._check(access.addresses, access.size, access.writes, access.text)
        self._accesses.append(replace(access, addresses=access.addresses + self._shift[found]))

    def check_races(self, block: int, first: bool, last: bool) -> None:
        """Some blocks, of so many threads, have run: the first of a launch, the last, or others."""
        accesses, self._accesses = self._accesses, []
        find_races(accesses, self._total, block)
        if first:
            self._touched = None if last else Touched(self._total)
        if self._touched is not None:
            self._touched.check(accesses)
            self._touched.add(accesses)
