"""Parameters and gradients of every shape and memory layout that the tests step over.

The tensors that must not write outside themselves lie inside a buffer of guard values.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GUARD = 777.0  # representable in every dtype used


def contiguous(values: Tensor) -> Tensor:
    """Ordinary memory."""
    return values.clone(memory_format=torch.contiguous_format)


def shifted(values: Tensor, elements: int) -> Tensor:
    """Contiguous, but so many elements off every alignment, with guards on both sides."""
    buffer = torch.full((values.numel() + elements + 1,), GUARD, dtype=values.dtype)
    view = buffer[elements:-1].view(values.shape)
    return view.copy_(values)


def unaligned(values: Tensor) -> Tensor:
    """Contiguous, but one element off every alignment, with guards on both sides."""
    return shifted(values, 1)


def gapped(values: Tensor) -> Tensor:
    """Every second element of the last dimension; guards in the gaps."""
    buffer = torch.full((*values.shape[:-1], 2 * values.shape[-1]), GUARD, dtype=values.dtype)
    return buffer[..., ::2].copy_(values)


def transposed(values: Tensor) -> Tensor:
    """The last two dimensions swapped in memory."""
    return values.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2)


def channels_last(values: Tensor) -> Tensor:
    """NHWC memory of an NCHW tensor."""
    return values.clone(memory_format=torch.channels_last)


def expanded(values: Tensor) -> Tensor:
    """One number seen as a whole tensor: what backward of a sum hands out. For gradients only."""
    return values.flatten()[0].clone().expand(values.shape)


Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TensorCase:
    """Shape of a parameter, memory layout of it (and its states) and of its gradient."""

    shape: tuple[int, ...]
    param: Layout = contiguous
    grad: Layout = contiguous


SIZES = [(), (0,), (1,), (3,), (63,), (64,), (65,), (511,), (512,), (513,), (2**16 + 1,), (4, 0, 3)]
LAYOUTS = [
    TensorCase((1300,), unaligned, unaligned),
    TensorCase((33, 65), transposed, contiguous),
    TensorCase((33, 65), contiguous, transposed),
    TensorCase((2, 8, 9, 9), channels_last, contiguous),
    TensorCase((2, 8, 9, 9), contiguous, channels_last),
    TensorCase((40, 30), gapped, gapped),
    TensorCase((600,), contiguous, expanded),
]
MORE_LAYOUTS = [
    *LAYOUTS,
    TensorCase((1300,), unaligned, contiguous),
    TensorCase((1300,), contiguous, unaligned),
    TensorCase((3, 20, 19), transposed, transposed),
    TensorCase((2, 8, 9, 9), channels_last, channels_last),
    TensorCase((1, 700), gapped, contiguous),
]
ALL = [*(TensorCase(shape) for shape in SIZES), *LAYOUTS]
MANY = [TensorCase((1 + 37 * i % 90,)) for i in range(1000)]


@functools.cache
def normal_values(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """N(0, 1) tensors; kept, because hundreds of tests start from the same. Not to be written to."""
    generator, cpu = torch.Generator().manual_seed(seed), torch.device("cpu")  # whatever the default device is
    return [torch.randn(shape, generator=generator, dtype=torch.float64, device=cpu).to(dtype) for shape in shapes]


def make_params(
    cases: list[TensorCase], dtype: torch.dtype, seed: int = 1, devices: list[torch.device] | None = None
) -> list[Tensor]:
    """N(0, 1) leaves in the cases' layouts, on the CPU or each on its device; the same values for the same seed."""
    values = normal_values(tuple(case.shape for case in cases), dtype, seed)
    params = []
    for case, value, device in zip(cases, values, devices or [torch.device("cpu")] * len(cases), strict=True):
        with device:  # the layouts make their buffers on the current device
            params.append(case.param(value.to(device)).requires_grad_())
    return params


def set_grads(params: list[Tensor], cases: list[TensorCase], step: int) -> None:
    """N(0, 1) gradients of one step, in the cases' layouts, on the parameters' devices."""
    values = normal_values(tuple(case.shape for case in cases), params[0].dtype, 1000 + step)
    for param, case, value in zip(params, cases, values, strict=True):
        with param.device:
            param.grad = case.grad(value.to(param.device))


def whole_buffer(tensor: Tensor) -> Tensor:
    """All memory of the tensor's storage, as a flat tensor: itself and its guards."""
    numel = tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.as_strided(tensor.detach(), (numel,), (1,), 0)


def guards_of(tensor: Tensor) -> Tensor:
    """The storage elements that are not the tensor's own."""
    own = torch.zeros_like(whole_buffer(tensor), dtype=torch.bool)
    torch.as_strided(own, tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return whole_buffer(tensor)[~own]
