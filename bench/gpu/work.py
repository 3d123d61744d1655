"""The parameters of a row, with gradients, where and how the row has them lie."""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from ..workloads import with_gradient
from .rows import Row


def placed(values: Tensor, offset: int, memory_format: torch.memory_format) -> Tensor:
    """The values, ``offset`` elements behind an aligned address, 4-D ones in the memory format."""
    if values.dim() == 4:
        values = values.contiguous(memory_format=memory_format)
    if not offset:
        return values
    buffer = values.new_empty(values.numel() + offset)
    return buffer[offset:].as_strided(values.shape, values.stride()).copy_(values)


class Work:
    """Normal parameters of a row on a device, and gradients that a step finds.

    Args:
        row: what to make.
        device: where they lie.
        drawn_on: where the values are drawn; the same there for any ``device``.
    """

    def __init__(self, row: Row, device: torch.device, drawn_on: torch.device) -> None:
        generator = torch.Generator(drawn_on).manual_seed(0)
        self.row = row

        def draw(offset: int, dtype: torch.dtype) -> list[Tensor]:
            return [
                placed(
                    torch.randn(shape, generator=generator, device=drawn_on, dtype=dtype).to(device),
                    offset, row.work.memory_format,
                )
                for shape in row.work.shapes
            ]  # fmt: skip

        self.params = draw(row.param_offset, row.work.dtype)
        self._grads = [draw(row.grad_offset, row.work.grad_dtype or row.work.dtype) for _ in range(1 + row.moved)]
        self._next = cycle(self._grads)
        self._enter(next(self._next))

    def _enter(self, grads: list[Tensor]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            with_gradient(param, grad)

    def before_step(self) -> None:
        """What a backward pass leaves: moved gradients lie elsewhere than those of the step before."""
        if self.row.moved:
            self._enter(next(self._next))

    def with_backward(self, step: Callable[[], object]) -> Callable[[], object]:
        """The step, after gradients are made for it if the row has that in the time of a step."""
        if not self.row.backward:
            return step
        sources = self._grads[0]

        def whole() -> None:
            self._enter([source.clone() for source in sources])
            step()

        return whole
