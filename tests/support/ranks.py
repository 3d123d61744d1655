"""Processes of a gloo group: each runs one function, and what one asserts in vain fails the test.

They are forked off a process that has imported torch and done nothing else, as a user's ranks begin: not off pytest's,
whose threads and memory, after thousands of tests, would be theirs.
"""

import faulthandler
import functools
import multiprocessing
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import distributed

# What takes long to import: a rank that did it itself would take seconds.
PRELOAD = [
    "pytest", "torch", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "torch.distributed.tensor",
    "torch.distributed.tensor.parallel", "torch._dynamo", "numpy.random", "lrtricks_fused",
]  # fmt: skip


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _rank(rank: int, size: int, function: Callable[..., Any], rendezvous: str, results: Any, args: tuple) -> None:
    faulthandler.enable()  # says where a rank was that dies
    torch.set_num_threads(1 + rank % 2)  # several threads must do the same, and wait for nothing of Python
    try:
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
        result, error = function(rank, size, *args), None
        distributed.barrier()
    except BaseException:
        result, error = None, traceback.format_exc()
    results.put((rank, result, error))
    results.close()
    results.join_thread()
    os._exit(0)  # without a clean-up, which would wait for others


def _died(ranks: list[Any], answers: Container[int], seconds: float = 0) -> str:
    """Which ranks ended, by now or within some time, without an answer."""
    for process in ranks:
        process.join(seconds)
    ended = [(rank, process.exitcode) for rank, process in enumerate(ranks)]
    # With 0 ends who has answered, whether that was read or not.
    return "".join(f"rank {rank} died, exit code {code}\n" for rank, code in ended if code and rank not in answers)


def run(function: Callable[..., Any], size: int, *args: Any, seconds: float = 120) -> list[Any]:
    """What ``function(rank, size, *args)`` returns on each of ``size`` ranks; all of them must be picklable.

    Raises:
        AssertionError: a rank failed, with its traceback, or took too long.
    """
    context = _context()
    results, answers = context.Queue(), {}
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = os.path.join(folder, "rendezvous")
        ranks = [
            context.Process(target=_rank, args=(rank, size, function, rendezvous, results, args), daemon=True)
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        end = time.monotonic() + seconds
        try:
            while len(answers) < size:
                try:
                    rank, result, error = results.get(timeout=0.2)
                except queue.Empty:
                    assert time.monotonic() < end, f"ranks {sorted(answers)} of {size} answered in {seconds} s"
                    died = _died(ranks, answers)
                    assert not died or not results.empty(), died
                    continue
                assert error is None, f"rank {rank}:\n{error}{_died(ranks, {**answers, rank: None}, seconds=1)}"
                answers[rank] = result
        finally:
            for process in ranks:
                process.join(0 if len(answers) < size else 5)
                if process.is_alive():
                    process.kill()
                    process.join()
    return [answers[rank] for rank in range(size)]
