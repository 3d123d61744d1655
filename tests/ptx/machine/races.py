"""Races: two threads access the same byte, one of them writes, and no barrier lies between them.

Threads of different blocks are ordered by nothing but the end of a launch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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
    writes: bool
    constant: bool  # by the cache that does not see writes
    text: str


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
    seen: dict[int, list[tuple[int, int, int, bool, str]]] = {}
    for access in accesses:
        for units in _units(access, unit):
            for k in np.flatnonzero(contended[units]):
                key = (int(access.threads[k]), int(access.blocks[k]), int(access.epochs[k]))
                seen.setdefault(int(units[k]), []).append((*key, access.writes, access.text))
    for made in seen.values():
        for i, (thread, block, epoch, writes, text) in enumerate(made):
            for other, its_block, its_epoch, its_writes, its_text in made[:i]:
                if thread != other and (writes or its_writes) and (block != its_block or epoch == its_epoch):
                    raise Race(f"threads {other} and {thread} of the launch: {its_text} and {text}")
