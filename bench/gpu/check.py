"""Whether ours steps a row's kind of tensors to the reference's bits, before it is timed."""

from dataclasses import replace

import torch

from lrtricks_fused.optim.base import MaskedOptimizer
from lrtricks_fused.tools.verify import stepping

from ..candidates import OptimizerStep, Step
from ..sixteen_bits import mirror_of
from .candidates import Ours
from .device import Device
from .rows import MIRROR, small
from .work import Work

ACROSS = ((9001,),)  # more than a block of 8,192 elements
STEPS = 3
CPU = torch.device("cpu")


def optimizer_of(step: Step) -> MaskedOptimizer:
    """The optimizer of one of ours."""
    assert isinstance(step, OptimizerStep) and isinstance(step.optimizer, MaskedOptimizer)
    return step.optimizer


def _beside(ours: Ours, step: Step, work: Work) -> list[torch.Tensor]:
    """What the optimizer has written beside parameters and states: mirrors, and which elements have changed."""
    optimizer = optimizer_of(step)
    bitmaps = [change.bitmap for change in optimizer.pop_changes().values()] if optimizer.track_changes else []
    return [*(map(mirror_of, work.params) if ours.trick == MIRROR else ()), *bitmaps]


def difference(ours: Ours, device: Device) -> str | None:
    """The first difference from the reference after a few steps of a few small tensors, of all that a step writes.

    In the layouts, and by the ways, of the row: gradients that move, a graph that is replayed.
    """
    row = small(ours.row, ACROSS)
    candidate = replace(ours, row=row)
    work, expected = Work(row, device.device, CPU), Work(row, CPU, CPU)
    step = candidate.build(work.params)
    reference = replace(candidate, backend="reference").build(expected.params)
    taken = 0

    def take() -> None:
        nonlocal taken
        expected.before_step()
        reference()
        taken += 1

    for _ in range(STEPS):
        work.before_step()
        step()
        take()
    if row.graph:
        replay = device.capture(work.with_backward(step))
        take()  # a capture's warm-up
        for _ in range(STEPS):
            replay()
            take()
    text = stepping.mismatch(optimizer_of(step), optimizer_of(reference))
    both = (_beside(candidate, step, work), _beside(candidate, reference, expected))
    for number, (got, want) in enumerate(zip(*both, strict=True)):
        if not text and (found := stepping.difference(got, want)):
            text = f"parameter {number}, {ours.trick.name}: {found}"
    return f"differs from the reference after {taken} steps: {text}" if text else None
