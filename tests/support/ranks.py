"""Processes of a gloo group, forked: each runs one function, and what one asserts in vain fails the test."""

import multiprocessing
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed


def _rank(rank: int, size: int, function: Callable[..., Any], rendezvous: str, results: Any, args: tuple) -> None:
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
        result, error = function(rank, size, *args), None
        distributed.barrier()
    except BaseException:
        result, error = None, traceback.format_exc()
    results.put((rank, result, error))
    results.close()
    results.join_thread()
    os._exit(0)  # without the parent's own clean-up


def run(function: Callable[..., Any], size: int, *args: Any, seconds: float = 120) -> list[Any]:
    """What ``function(rank, size, *args)`` returns on each of ``size`` ranks; the results must be picklable.

    Raises:
        AssertionError: a rank failed, with its traceback, or took too long.
    """
    context = multiprocessing.get_context("fork")  # a rank that imports torch anew takes seconds
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
                    assert any(process.is_alive() for process in ranks) or not results.empty(), "a rank died"
                    continue
                assert error is None, f"rank {rank}:\n{error}"
                answers[rank] = result
        finally:
            for process in ranks:
                process.join(0 if len(answers) < size else 5)
                if process.is_alive():
                    process.kill()
                    process.join()
    return [answers[rank] for rank in range(size)]
