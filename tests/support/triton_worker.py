"""Runs test functions in processes of their own, where Triton interprets or, on a stub of a GPU, compiles.

Triton decides which when it is imported. ``@interpreted`` and ``@compiled`` hand a test over; all that were selected
of its file go to the processes when the first one begins, so that every core works, and each test waits for its own.
"""

import functools
import importlib
import inspect
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import everything
from inventory import SEED
from tensors import make_params, set_grads

from lrtricks_fused.step import backends
from lrtricks_fused.step.call import StepCall
from lrtricks_fused.step.table import PREPARED_BYTES

POISON = 0xCD
INTERPRETERS = 2
THRESHOLD, FLAGS = PREPARED_BYTES // 4 - 2, PREPARED_BYTES // 4 - 1  # of the 32-bit words of the scratch: layout.py


def _handed_over(test: Callable, interpret: bool) -> Callable:
    def wait(request: pytest.FixtureRequest, **_) -> None:
        _futures(request.session, request.path)[request.node.nodeid].result()

    functools.update_wrapper(wait, test)
    wait.interpret = interpret
    parameters = inspect.signature(test).parameters
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    wait.__signature__ = inspect.Signature([inspect.Parameter("request", kind), *parameters.values()])
    return wait


def interpreted(test: Callable) -> Callable:
    """Makes a test run where the kernels step CPU tensors."""
    return _handed_over(test, True)


def compiled(test: Callable) -> Callable:
    """Makes a test run where the kernels are compiled, and launches go to a StubDriver."""
    return _handed_over(test, False)


@functools.cache
def _pool(config: pytest.Config, interpret: bool) -> ProcessPoolExecutor:
    """The processes of all files: to begin one takes as long as ten tests. Other workers of xdist have their own."""
    workers = max(INTERPRETERS // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1) if interpret else 1
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (interpret,))
    config.add_cleanup(functools.partial(pool.shutdown, cancel_futures=True))
    return pool


@functools.cache
def _futures(session: pytest.Session, path: Path) -> dict[str, Future]:
    """The runs of all selected tests of a file by their names."""
    futures = {}
    for item in session.items:
        test = getattr(item, "function", None)
        if hasattr(test, "interpret") and item.path == path:
            arguments = item.callspec.params if hasattr(item, "callspec") else {}
            # Pickled here: a process would otherwise receive tensors as handles of shared memory.
            work = test.__module__, test.__name__, pickle.dumps(arguments)
            futures[item.nodeid] = _pool(session.config, test.interpret).submit(_run, *work)
    return futures


def _start(interpret: bool) -> None:
    """The beginning of a process. The scratch of a step is poisoned first, which must change nothing."""
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = str(int(interpret))
    torch.set_num_threads(1)
    from lrtricks_fused.triton_kernels import launch

    if interpret:
        _patch_less()
    run = launch._run

    def poisoned(call, table):
        table.prepared.fill_(POISON)
        if call.centralize and table.slice_scratch is not None:
            table.slice_scratch.fill_(POISON)
        run(call, table)

    launch._run = poisoned


def _patch_less() -> None:
    """Half of the interpreter's time goes into patching triton.language anew for each call of a function.

    A launch patches it for the kernel; of what the functions of a module need besides, nothing is ever restored.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    modules = set()

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in modules:
            modules.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _run(module: str, name: str, arguments: bytes) -> None:
    getattr(importlib.import_module(module), name).__wrapped__(**pickle.loads(arguments))


def scratch(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The scratch of an optimizer's only table, as 32-bit words."""
    (table,) = optimizer._tables.values()
    return table.prepared.view(torch.int32)


def triton_step(call):
    """One step by the Triton kernels, from inside an interpreted test."""
    backends.resolve("triton", torch.device("cpu")).step(call)


def late_step(case, dtype, keep_prob, backend, shapes, earlier=6, **arguments):
    """Everything after one step by ``backend``, the seventh of all tensors but the last, whose first it is."""
    params = make_params(shapes, dtype.dtype)
    optimizer = case.make(params, keep_prob=keep_prob, grad_weight=0.7, seed=SEED, backend="reference",
                          state_dtype=dtype.state_dtype, **arguments)  # fmt: skip
    for n in range(earlier + 1):
        set_grads(params, shapes, n)
        if n < earlier:
            params[-1].grad = None
        else:
            optimizer.backend = backend
        optimizer.step()
    return everything(optimizer)


def triton_mask(numel, keep_prob, seed, step, param):
    """Elements moved by an SGD step of lr 1 at the given step count and parameter index."""
    from lrtricks_fused.triton_kernels.launch import triton_step

    values = torch.zeros(numel)
    call = StepCall(
        rule="sgd", params=[values], grads=[torch.ones(numel)], states={"momentum_buffer": []},
        steps=[torch.tensor(step - 1.0, dtype=torch.float64)], param_indices=[param],
        hyper=dict(momentum=0.0, dampening=0.0, nesterov=False), lr=1.0, weight_decay=0.0,
        decoupled_weight_decay=False, maximize=False, keep_prob=keep_prob, grad_weight=1.0, seed=seed, grad_scale=None,
        found_inf=None, tables={},
    )  # fmt: skip
    triton_step(call)
    return values != 0


class StubDriver:
    """What Triton takes for a GPU: loads nothing, and notes the name and the grid of a launch instead of running it."""

    def __init__(self, target) -> None:
        self.target, self.launches, self.compilations = target, [], []
        self.utils = self

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 2**16}

    def load_binary(self, name: str, *_) -> tuple[int, ...]:
        self.compilations.append(name)  # each is loaded before its first launch
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def launcher_cls(self, source, metadata) -> Callable:
        # Of a grid of no programs a launcher does nothing.
        return lambda *arguments: self.launches.append((source.name, arguments[0])) if arguments[0] else None


def stub_gpu(monkeypatch: pytest.MonkeyPatch, backend: str, arch: int | str, warp_size: int) -> StubDriver:
    """Makes steps of CPU tensors go to a StubDriver until the monkeypatch ends."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from lrtricks_fused.triton_kernels import launch, prepare, slices, step, upload

    stub = StubDriver(GPUTarget(backend, arch, warp_size))
    driver.set_active(stub)
    for kernel in (
        slices.sum_partials,
        slices.find_means,
        prepare.prepare_kernel,
        step.step_kernel,
        upload.write_words,
    ):
        kernel.device_caches.clear()
    monkeypatch.setattr(launch, "_loaded", set())
    launch._target_of.cache_clear()
    monkeypatch.setattr(backends, "why_not_triton", lambda device: None)
    monkeypatch.setattr(torch.version, "hip", "6.4" if backend == "hip" else None)
    return stub
