"""Named ways to step what is stored in 16 bits beside fp32: offloading by one pass or between casts, split masters.

Buffers that are no states (mirrors, copies in another dtype) belong to the parameter, so that all candidates which step
it use the same memory.
"""

import torch
from torch import Tensor

from .candidates import Candidate, OptimizerStep, Step, optimizer_of
from .workloads import gradient, with_gradient

BITMAP_BYTES = 2 / 8  # per parameter: the bit that says whether it has changed is read and written


def beside(param: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """The parameter's buffer of that name: as large as it is, and uninitialised at first."""
    buffers = vars(param).setdefault("buffers_beside", {})
    if name not in buffers:
        buffers[name] = torch.empty_like(param, dtype=dtype, requires_grad=False)
    return buffers[name]


def mirror_of(param: Tensor) -> Tensor:
    """Where the bf16 copy of an fp32 parameter goes."""
    return beside(param, "mirror", torch.bfloat16)


def offloaded(rule: str, *, isa: str = "", track_changes: bool = False) -> Candidate:
    """Ours in one pass: fp32 parameters, gradients as they are, a bf16 mirror."""

    def build(params: list[Tensor]) -> Step:
        optimizer = optimizer_of(rule, params, track_changes=track_changes)
        for param in params:
            optimizer.mirror(param, mirror_of(param))
        return OptimizerStep(optimizer)

    name = f"ours{' ' + isa if isa else ''}, mirror{', track_changes=True' * track_changes}"
    return Candidate(name, build, isa, more=torch.bfloat16.itemsize + BITMAP_BYTES * track_changes)


def between_casts(inner: Candidate) -> Candidate:
    """Gradients copied to fp32, the inner candidate's step of the same parameters, and these copied to bf16."""

    def build(params: list[Tensor]) -> Step:
        twins = [with_gradient(param.detach(), beside(param, "fp32 gradient", torch.float32)) for param in params]
        step = inner.build(twins)
        assert isinstance(step, OptimizerStep)

        def whole() -> None:
            for param, twin in zip(params, twins, strict=True):
                gradient(twin).copy_(gradient(param))
            step()
            for param in params:
                mirror_of(param).copy_(param.detach())

        return OptimizerStep(step.optimizer, whole)

    return Candidate(f"{inner.name} between casts", build)


def split_masters(rule: str) -> Candidate:
    """Ours of bf16 twins of the parameters, with bf16 gradients, fp32 states, and the masters' other halves."""

    def build(params: list[Tensor]) -> Step:
        twins = []
        for param in params:
            twin, grad = (beside(param, name, torch.bfloat16) for name in ("bf16 twin", "bf16 gradient"))
            twins.append(with_gradient(twin.detach().copy_(param.detach()), grad.copy_(gradient(param))))
        return OptimizerStep(optimizer_of(rule, twins, master="split"))

    fewer = torch.bfloat16.itemsize - torch.float32.itemsize  # of the gradients; both halves are as long as fp32
    return Candidate("ours, split masters", build, more=fewer)
