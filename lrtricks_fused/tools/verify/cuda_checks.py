"""The checks of `lrtricks verify` that only CUDA can pass or fail: graphs, streams, synchronisation, memory."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...optim.base import MaskedOptimizer
from .checks import change_scalars, make_capturable
from .inventory import SMALL, Target, Variant
from .stepping import gradients, make_both, mismatch, params_of, set_grads, take_step

SLEEP_CYCLES = 300_000_000  # of the GPU's clock: over 0.1 s, many times what the host needs for a few steps


def check_graph(target: Target, *, variant: Variant, **options: Any) -> str | None:
    """A captured step, replayed with new gradients and scalars, and eager steps in between."""
    both = ours, _ = make_capturable(target, variant, **options)
    params = params_of(ours)
    static = gradients(params, SMALL, 0)
    set_grads(params, static)

    def eager() -> None:
        set_grads(params, [grad.clone() for grad in static])
        ours.step()
        set_grads(params, static)

    return _replay(target, both, static, ours.step, eager)


def check_training_graph(target: Target, *, variant: Variant) -> str | None:
    """Forward, backward and step in one captured graph: its gradients are new memory, whose addresses it must enter."""
    both = ours, _ = make_capturable(target, variant)
    params = params_of(ours)
    inputs = gradients(params, SMALL, 0)

    def train() -> None:
        ours.zero_grad(set_to_none=True)
        # The gradient of each parameter is the input beside it, to the bit.
        torch.stack([(param * x).sum() for param, x in zip(params, inputs, strict=True)]).sum().backward()
        ours.step()

    return _replay(target, both, inputs, train, train)


def _replay(
    target: Target,
    both: tuple[MaskedOptimizer, MaskedOptimizer],
    static: list[Tensor],  # the gradients of the captured step, or what they are copies of
    captured: Callable[[], Any],
    eager: Callable[[], Any],
) -> str | None:
    """Warm up, capture a step of the first optimizer, and replay it; the second steps as it should."""
    ours, expected = both
    params = params_of(ours)

    def prepare(step: int) -> None:
        for optimizer in both:
            change_scalars(optimizer, step)
        for tensor, new in zip(static, gradients(params, SMALL, step), strict=True):
            tensor.copy_(new)
        take_step(expected, SMALL, step)

    with torch.cuda.device(target.device):
        side = torch.cuda.Stream()
        for step in range(3):  # as torch's documentation of CUDA graphs asks
            prepare(step)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                captured()
            torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):  # torch's own would be of the device that captured first
            captured()
        if text := mismatch(ours, expected):
            return f"after capture, which executes nothing: {text}"
        for step in range(3, 12):
            prepare(step)
            (eager if step in (6, 8) else graph.replay)()  # a step on other gradients must not disturb the graph
        torch.cuda.synchronize()
        return mismatch(ours, expected)


def check_side_stream(target: Target, *, variant: Variant) -> str | None:
    """A step belongs to the current stream: it waits for the gradients computed there."""
    ours, expected = make_both(target, variant, SMALL)
    params = params_of(ours)
    read = [torch.zeros_like(param) for param in params]  # the zeros are what a step that does not wait would find
    set_grads(params, read)
    with torch.cuda.device(target.device):
        incoming = [gradients(params, SMALL, step) for step in range(3)]
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for grads in incoming:
                torch.cuda._sleep(SLEEP_CYCLES // 4)
                for tensor, grad in zip(read, grads, strict=True):
                    tensor.copy_(grad)
                ours.step()
                for tensor in read:
                    tensor.zero_()
        torch.cuda.synchronize()
    for step in range(3):
        take_step(expected, SMALL, step)
    return mismatch(ours, expected)


@contextmanager
def _synchronising_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _warmed_up(target: Target, variant: Variant, **options: Any) -> tuple[MaskedOptimizer, MaskedOptimizer, list]:
    """Both optimizers after four steps that alternate between two sets of gradients, and the sets on the target."""
    ours, expected = make_capturable(target, variant, **options)
    params = params_of(ours)
    sets = [gradients(params, SMALL, step) for step in range(2)]
    for step in range(4):
        set_grads(params, sets[step % 2])
        ours.step()
        take_step(expected, SMALL, step % 2)
    return ours, expected, sets


def check_measured_step(target: Target, *, variant: Variant, **options: Any) -> str | None:
    """A warmed-up step of many launches, which fill the device's queue, calls nothing that waits for the device."""
    with torch.cuda.device(target.device):
        ours, expected, sets = _warmed_up(target, variant, **options)
        with _synchronising_is_an_error():
            for step in (0, 1, 1):
                set_grads(params_of(ours), sets[step])
                ours.step()
    for step in (0, 1, 1):
        take_step(expected, SMALL, step)
    return mismatch(ours, expected)


def check_no_synchronisation(target: Target, *, variant: Variant) -> str | None:
    """A warmed-up step, on gradients that have moved or not, does not wait for the device."""
    with torch.cuda.device(target.device):
        ours, expected, sets = _warmed_up(target, variant)
        done = torch.cuda.Event()
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        done.record()
        with _synchronising_is_an_error():
            for step in (0, 1, 1):
                set_grads(params_of(ours), sets[step])
                ours.step()
        waited = done.query()  # what was enqueued before the steps has ended: they must have waited for it
        torch.cuda.synchronize()
    for step in (0, 1, 1):
        take_step(expected, SMALL, step)
    return "the step waited for the device" if waited else mismatch(ours, expected)


def check_no_allocation(target: Target, *, variant: Variant) -> str | None:
    """A warmed-up step, on gradients that have moved or not, asks torch for no device memory."""
    with torch.cuda.device(target.device):
        ours, expected, sets = _warmed_up(target, variant)
        counts = [_allocations(target)]
        for step in (0, 1, 1):
            set_grads(params_of(ours), sets[step])
            ours.step()
            counts.append(_allocations(target))
    for step in (0, 1, 1):
        take_step(expected, SMALL, step)
    made = [after - before for before, after in pairwise(counts)]
    return f"allocations in three steps: {made}" if any(made) else mismatch(ours, expected)


def _allocations(target: Target) -> int:
    return torch.cuda.memory_stats(target.device)["allocation.all.allocated"]
