"""The tensors that a step may touch, found in whatever it is given, and which of them it may write."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from machine.memory import Allocation, allocation_of
from torch import Tensor

from lrtricks_fused.step.call import StepCall, Storage
from lrtricks_fused.step.table import AddressTable

# By the names that calls and tables have for them. What lies on the host alone is no memory of a device.
READ_ONLY = {"grads", "lr", "keep_prob", "grad_weight", "grad_scale", "found_inf", "clip", "rows", "chunk_tensors",
             "norms"}  # fmt: skip
OF_HOST = {"_host_rows", "tables", "words"}


def tensors(held: Any, writable: bool = True) -> Iterator[tuple[Tensor, bool]]:
    """All tensors in an object, its containers and attributes; and whether each may be written."""
    if isinstance(held, Tensor):
        yield held, writable
    elif isinstance(held, dict):
        for name, value in held.items():
            if name not in OF_HOST:
                yield from tensors(value, writable and name not in READ_ONLY)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from tensors(value, writable)
    elif isinstance(held, StepCall) and held.params and not held.grads:
        # A repeated step's, whose gradients come and go.
        yield from tensors(replace(held, grads=[param.grad for param in held.params]), writable)
    elif isinstance(held, (StepCall, Storage)):
        yield from tensors({field.name: getattr(held, field.name) for field in fields(held)}, writable)
    elif isinstance(held, AddressTable):
        yield from tensors(vars(held), writable)


def allocations(held: Iterable[Any]) -> list[Allocation]:
    """What a launch on behalf of these objects may touch."""
    found = [allocation_of(tensor.detach(), writable) for tensor, writable in tensors(list(held))]
    return [allocation for allocation in found if allocation is not None]
