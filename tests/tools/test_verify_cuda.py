"""The CUDA-only checks of ``lrtricks verify`` on stand-ins for torch.cuda, so that they do not rot between GPUs."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrtricks_fused.optim import repeats
from lrtricks_fused.step import native
from lrtricks_fused.tools import verify

CPU = verify.Target(torch.device("cpu"))
on_cuda_only = pytest.mark.parametrize(
    "check", [check for check in verify.FURTHER if check.cuda_only], ids=lambda c: f"{c.section}-{c.name}"
)


class Recorder(TorchDispatchMode):
    """Appends every tensor operation to a list, as what repeats it into the same memory."""

    def __init__(self, work):
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))

        def repeat():
            again = function(*args, **(kwargs or {}))
            if made is not None and again.data_ptr() != made.data_ptr():  # no view
                made.copy_(again)

        # And not one of the profiler's marks; the library's own operations return nothing.
        if isinstance(made, torch.Tensor) or function.namespace == "lrtricks_fused":
            self.work.append(repeat)
        return made


class StandIns:
    """A GPU that obeys at once; capture records operations and the steps' calls, replay runs them."""

    def __init__(self):
        self.graph = None
        self.allocations = 0
        self.waited = False
        self.stale = False  # as if a step did not belong to the current stream
        self.on_side = False

    def native_step(self, call):
        if self.graph is not None:
            self.graph.work.append(lambda: native.native_step(replace(call, prepared=False)))  # its table is its own
            return
        if self.stale and self.on_side:
            call = replace(call, grads=[torch.zeros_like(grad) for grad in call.grads], prepared=False)
        native.native_step(call)

    def native_squares(self, call, out):
        def write():
            own = replace(call, prepared=False, tables={})  # its table is its own
            native.prepare(own)
            native.squares(own, out)

        write() if self.graph is None else self.graph.work.append(write)

    @contextlib.contextmanager
    def capture(self, graph, stream):
        self.graph = graph
        with Recorder(graph.work):
            yield
        self.graph = None

    @contextlib.contextmanager
    def stream(self, stream):
        self.on_side = True
        yield
        self.on_side = False

    def install(self, monkeypatch, implement):
        implement("native", self.native_step, native.prepare, self.native_squares, native.clip)
        monkeypatch.setattr(repeats, "is_captured", lambda device: self.graph is not None)
        stand_ins = self

        class Stream:
            def wait_stream(self, other):
                assert isinstance(other, Stream)

        class Graph:
            def __init__(self):
                self.work = []

            def replay(self):
                for repeat in self.work:
                    repeat()

        class Event:
            def record(self):
                pass

            def query(self):
                return stand_ins.waited

        modes = [0]
        for name, value in {
            "device": lambda device: contextlib.nullcontext(), "Stream": Stream, "stream": self.stream,
            "current_stream": Stream, "synchronize": lambda: None, "CUDAGraph": Graph, "graph": self.capture,
            "Event": Event, "_sleep": lambda cycles: None, "get_sync_debug_mode": lambda: modes[-1],
            "set_sync_debug_mode": modes.append,
            "memory_stats": lambda device: {"allocation.all.allocated": self.allocations},
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        return modes


@on_cuda_only
def test_cuda_checks_on_stand_ins(check, monkeypatch, implement):
    modes = StandIns().install(monkeypatch, implement)
    assert check.run(CPU) is None
    assert modes == ([0, "error", 0] if check.section.startswith("no synchronisation") else [0])


def test_cuda_checks_can_fail(monkeypatch, implement):
    stand_ins = StandIns()
    stand_ins.install(monkeypatch, implement)
    first = {check.section: check for check in reversed(verify.FURTHER)}
    stand_ins.waited = True
    assert first["no synchronisation"].run(CPU) == "the step waited for the device"
    stand_ins.stale = True
    assert "momentum_buffer" in first["side stream"].run(CPU)
    growing = itertools.count()
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"allocation.all.allocated": next(growing)})
    assert first["no allocation"].run(CPU) == "allocations in three steps: [1, 1, 1]"
    stand_ins.stale = False
    honest = native.native_step
    warm = {}  # a graph that never learns where its gradients are

    def on_old_gradients(call):
        call.grads = warm.setdefault(id(call.params[0]), [grad.clone() for grad in call.grads])
        honest(call)

    monkeypatch.setattr(native, "native_step", on_old_gradients)
    assert "differ" in first["CUDA graph of training"].run(CPU)
    monkeypatch.setattr(native, "native_step", honest)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    for section in ("CUDA graph", "CUDA graph of training"):
        assert "after capture, which executes nothing" in first[section].run(CPU)
