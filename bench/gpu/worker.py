"""Measures rows in a process of its own, which may hang or lose its GPU: another one then goes on with the next row."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from lrtricks_fused.tools.cli import parse_device

from .candidates import baseline
from .device import Cuda, Device, DryRun
from .measure import Result, Settings, measure
from .rows import ROWS, Row

START_SECONDS = 120.0
END_SECONDS = 20.0


class Runner(Protocol):
    """Measures rows."""

    facts: dict[str, str]
    uuid: str | None

    def run(self, row: Row, seconds: float) -> Result:
        """The row measured, within so many seconds."""

    def close(self) -> None:
        """Ends what was started."""


def cuda_device(name: str) -> torch.device:
    """The device of that name, with its index; ValueError for others than CUDA devices that are there."""
    device = parse_device(name)
    if device.type != "cuda":
        raise ValueError(f"Invalid --device {name}: must be cuda or cuda:N")
    return device


def open_device(settings: Settings) -> Device:
    """The device that the settings name; errors as those of :func:`cuda_device`."""
    return DryRun() if settings.dry_run else Cuda(cuda_device(settings.device))


class Here:
    """In this process, for debuggers and profilers."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._device = settings, open_device(settings)
        self.facts, self.uuid = self._device.facts(), self._device.uuid()

    def run(self, row: Row, seconds: float) -> Result:
        """The row measured, however long that takes."""
        return measure(row, self._device, self._settings)

    def close(self) -> None:
        """Nothing was started."""


def serve(connection: Connection, settings: Settings) -> None:
    """What the process runs: rows by name, until the other side closes."""
    try:
        here = Here(settings)
    except Exception as error:
        return connection.send(error)
    connection.send((here.facts, here.uuid))
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(here.run(ROWS[name], 0.0))


class Apart:
    """In a process of its own, started anew where it has died, hung or lost the device.

    Raises:
        Exception: what the process cannot start for.
    """

    def __init__(self, settings: Settings, target: Callable[[Connection, Settings], None] = serve) -> None:
        self._settings, self._target = settings, target
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._target, args=(theirs, self._settings), daemon=False)
        self._process.start()
        theirs.close()
        answer = self._answer(START_SECONDS)
        if isinstance(answer, Exception):
            self.close()
            raise answer
        self.facts, self.uuid = answer

    def _answer(self, seconds: float) -> Any:
        """What the process sends, or why it does not."""
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            return RuntimeError(f"the process that measures died with exit code {self._process.exitcode}")
        return TimeoutError(f"no answer after {seconds:.0f} s")

    def run(self, row: Row, seconds: float) -> Result:
        """The row measured; all of ours are missing where there is no answer within so many seconds."""
        if not self._process.is_alive():
            self._start()
        self._connection.send(row.name)
        answer = self._answer(seconds)
        if isinstance(answer, Exception):
            result = Result(row.name, baseline(row), lost=True)
            result.lose(row, self._settings, str(answer))
        else:
            result = answer
        if result.lost:
            self._process.kill()
            self.close()  # a new one is started for the next row
        return result

    def close(self) -> None:
        """Ends the process, which is told by the closed pipe."""
        self._connection.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
