"""A stand-in for torch.cuda, on which bench.gpu runs from beginning to end, and such a run."""

import contextlib
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import torch

from bench.gpu import __main__ as gpu
from bench.gpu import measure, rows, worker
from lrtricks_fused.step import backends, native

NATIVE = ["--backends", "native", "--no-compile"]
OURS = ["ours, native, keep 0.5", "ours, native, keep 1", "ours, Triton, keep 0.5", "ours, Triton, keep 1"]


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def query(self):
        return False

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class Graph:
    """Replays nothing."""

    def replay(self):
        pass


def install(monkeypatch, implement):
    """Makes bench.gpu find a GPU whose memory is the host's; both backends step on it, tensors of a few elements."""
    properties = SimpleNamespace(
        name="GPU X", major=9, minor=0, multi_processor_count=132, total_memory=2**36, L2_cache_size=2**16
    )
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "is_available": lambda: True, "set_device": lambda device: None, "synchronize": lambda: None,
        "_sleep": lambda cycles: None, "Event": Event, "empty_cache": lambda: None, "CUDAGraph": Graph,
        "mem_get_info": lambda device: (2**36, 2**36), "get_device_properties": lambda device: properties,
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda of: contextlib.nullcontext(),
        "graph": lambda graph, stream: contextlib.nullcontext(), "is_current_stream_capturing": lambda: False,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(worker, "cuda_device", lambda name: torch.device("cpu"))
    # As many rounds as are asked, however slow this CPU is: a GPU's effort ends after so many seconds, too.
    monkeypatch.setattr(gpu, "QUICK", replace(measure.QUICK, rounds=3, seconds=math.inf))
    monkeypatch.setattr(gpu, "ROWS", {name: rows.small(row) for name, row in rows.ROWS.items()})
    monkeypatch.setattr(backends, "why_not_triton", lambda device: None)
    implement("triton", native.native_step, native.prepare)


def run(*arguments, file):
    """Exit status of a run in this process, and what it wrote."""
    code = gpu.main(["--in-process", "--quick", "--json", str(file), *arguments])
    return code, json.loads(file.read_text())
