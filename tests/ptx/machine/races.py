"""Races: two threads access the same byte, one of them writes, and no barrier of theirs lies between.

Threads of different blocks are ordered by nothing but the end of a launch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

WARP = 32


class Race(Exception):
    """Two threads access the same byte, one of them writing, and nothing orders them."""


@dataclass(frozen=True)
class Access:
    """What the executing threads do in one instruction."""

    addresses: np.ndarray
    size: int
    threads: np.ndarray  # by their numbers in the launch
    epochs: np.ndarray  # barriers of its block that each has passed
    warp_epochs: np.ndarray  # and of its warp
    constant: bool  # by the cache that does not see writes
    text: str
    values: np.ndarray | None = None  # that are written, a row of numbers an address; None: they are read

    @property
    def writes(self) -> bool:
        """Whether it is a store."""
        return self.values is not None


class Touched:
    """Which bytes the blocks that have run before have read and written; the launch's other blocks must not meet them.

    Addresses count from 0, and ``total`` is divisible by what an access may be wide.
    """

    def __init__(self, total: int) -> None:
        self.read, self.written = np.zeros(total, bool), np.zeros(total, bool)

    def check(self, accesses: list[Access]) -> None:
        """Raises Race for those that meet what other blocks have done."""
        for access in accesses:
            met = _rows(self.written, access).any() or (access.writes and _rows(self.read, access).any())
            if met:
                raise Race(f"a byte that another block accesses, too: {access.text}")

    def add(self, accesses: list[Access]) -> None:
        """These, too, have been made."""
        for access in accesses:
            marks = self.written if access.writes else self.read
            marks.reshape(-1, access.size)[access.addresses // access.size] = True


def _rows(marks: np.ndarray, access: Access) -> np.ndarray:
    return marks.reshape(-1, access.size)[access.addresses // access.size]


def find_races(accesses: list[Access], total: int, block: int) -> None:
    """Raises Race if two of the accesses, to ``total`` bytes in all, are unordered and one of them writes.

    Blocks have ``block`` threads each, numbered one after another.
    """
    if not any(access.writes for access in accesses):
        return
    unit = min(access.size for access in accesses)  # every access is aligned to its size: whole units
    writer = np.full(total // unit + 1, -1, np.int32)
    for access in accesses:
        if access.writes:
            for units in _units(access, unit):
                writer[units] = access.threads
    contended = np.zeros(len(writer), bool)
    for access in accesses:
        for units in _units(access, unit):
            last = writer[units]
            if access.constant and (last >= 0).any():
                raise Race(f"what is read as constant is written: {access.text}")
            contended[units[(last >= 0) & (last != access.threads)]] = True
    if contended.any():
        _judge(accesses, contended, unit, block)


def _units(access: Access, unit: int) -> Iterable[np.ndarray]:
    first = access.addresses // unit
    return (first + k for k in range(access.size // unit))


def _judge(accesses: list[Access], contended: np.ndarray, unit: int, block: int) -> None:
    """Of the bytes that several threads access: within a block, barriers may order them."""
    seen: dict[int, set[_Touch]] = {}
    for access in accesses:
        values = None if access.values is None else np.ascontiguousarray(access.values).view(np.uint8)
        warps = access.threads // WARP
        alone = np.bincount(warps - warps.min())[warps - warps.min()] == 1
        for number, units in enumerate(_units(access, unit)):
            for k in np.flatnonzero(contended[units]):
                value = None if values is None else bytes(values[k, number * unit : (number + 1) * unit])
                thread = int(access.threads[k])
                epochs = int(access.epochs[k]), int(access.warp_epochs[k])
                warp = thread % block // WARP
                touch = _Touch(thread, thread // block, warp, *epochs, value, access.text, bool(alone[k]))
                seen.setdefault(int(units[k]), set()).add(touch)
    for touches in map(list, seen.values()):
        replicated = {(touch.thread, touch.text) for touch in touches if touch.value is None}
        for i, touch in enumerate(touches):
            for other in touches[:i]:
                if touch.races(other) and not _replicates(touch, other, replicated):
                    raise Race(f"threads {other.thread} and {touch.thread}: {other.text} and {touch.text}")


def _replicates(touch: "_Touch", other: "_Touch", read: set[tuple[int, str]]) -> bool:
    """Whether a thread has read the number by the same instruction as the one of its warp that, alone, writes it.

    So Triton steps a scalar: all threads of a warp load it, and one of them stores what it has made of it.
    """
    reader, writer = (touch, other) if touch.value is None else (other, touch)
    return (
        reader.value is None and reader.is_in_warp_of(writer) and writer.alone and (writer.thread, reader.text) in read
    )


class _Touch(NamedTuple):
    """One thread's access to one unit of memory."""

    thread: int
    block: int
    warp: int  # of the block
    epoch: int
    warp_epoch: int
    value: bytes | None  # None: it is read
    text: str
    alone: bool  # no other thread of the warp executes the instruction

    def races(self, other: "_Touch") -> bool:
        if self.thread == other.thread or (self.value is None and other.value is None):
            return False
        # Threads that write the same value by the same instruction are what Triton makes of a replicated one, and
        # CUDA leaves nothing open but which of the equal writes is the last.
        if self.value is not None and self.value == other.value and self.text == other.text:
            return False
        if self.is_in_warp_of(other) and self.warp_epoch != other.warp_epoch:
            return False
        return self.block != other.block or self.epoch == other.epoch

    def is_in_warp_of(self, other: "_Touch") -> bool:
        return (self.block, self.warp) == (other.block, other.warp)
