"""Races: two threads access the same byte, one of them writes, and no barrier lies between them.

Threads of different blocks are ordered by nothing but the end of a launch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Race(Exception):
    """Two threads access the same byte, one of them writing, and nothing orders them."""


@dataclass(frozen=True)
class Access:
    """What the executing threads do in one instruction."""

    addresses: np.ndarray
    size: int
    threads: np.ndarray  # by their numbers in the launch
    blocks: np.ndarray
    epochs: np.ndarray
    constant: bool  # by the cache that does not see writes
    text: str
    values: np.ndarray | None = None  # that are written, a row of numbers an address; None: they are read

    @property
    def writes(self) -> bool:
        """Whether it is a store."""
        return self.values is not None


def find_races(accesses: list[Access], total: int) -> None:
    """Raises Race if two of the accesses, to ``total`` bytes in all, are unordered and one of them writes."""
    if not any(access.writes for access in accesses):
        return
    unit = min(access.size for access in accesses)  # every access is aligned to its size: whole units
    writer = np.full(total // unit + 1, -1, np.int64)
    writes = [access for access in accesses if access.writes]
    for access in writes:
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
        _judge(accesses, contended, unit)


def _units(access: Access, unit: int) -> Iterable[np.ndarray]:
    first = access.addresses // unit
    return (first + k for k in range(access.size // unit))


def _judge(accesses: list[Access], contended: np.ndarray, unit: int) -> None:
    """Of the bytes that several threads access: within a block, barriers may order them."""
    seen: dict[int, list[_Touch]] = {}
    for access in accesses:
        values = None if access.values is None else np.ascontiguousarray(access.values).view(np.uint8)
        for number, units in enumerate(_units(access, unit)):
            for k in np.flatnonzero(contended[units]):
                value = None if values is None else bytes(values[k, number * unit : (number + 1) * unit])
                seen.setdefault(int(units[k]), []).append(
                    _Touch(int(access.threads[k]), int(access.blocks[k]), int(access.epochs[k]), value, access.text)
                )
    for touches in seen.values():
        for i, touch in enumerate(touches):
            for other in touches[:i]:
                if touch.races(other):
                    raise Race(f"threads {other.thread} and {touch.thread}: {other.text} and {touch.text}")


class _Touch(NamedTuple):
    """One thread's access to one unit of memory."""

    thread: int
    block: int
    epoch: int
    value: bytes | None  # None: it is read
    text: str

    def races(self, other: "_Touch") -> bool:
        if self.thread == other.thread or (self.value is None and other.value is None):
            return False
        # Threads that write the same value by the same instruction are what Triton makes of a replicated one, and
        # CUDA leaves nothing open but which of the equal writes is the last.
        if self.value is not None and self.value == other.value and self.text == other.text:
            return False
        return self.block != other.block or self.epoch == other.epoch
