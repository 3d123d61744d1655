"""Lists of parameter shapes to step, and parameters with gradients made from them.

The lists are data; ``Workload.parameters`` allocates, so that a row's memory is free again when the row is done.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]


def resnet50_shapes() -> Shapes:
    """The 161 parameters of ResNet-50 in module order (He et al., CVPR 2016, table 1; 1,000 classes)."""

    def conv_bn(outputs: int, inputs: int, size: int) -> list[tuple[int, ...]]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes, inputs = conv_bn(64, 3, 7), 64
    for width, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        outputs = 4 * width
        for block in range(blocks):
            shapes += conv_bn(width, inputs, 1) + conv_bn(width, width, 3) + conv_bn(outputs, width, 1)
            if block == 0:
                shapes += conv_bn(outputs, inputs, 1)
            inputs = outputs
    return tuple([*shapes, (1000, inputs), (1000,)])


@dataclass(frozen=True)
class Workload:
    """Parameters to step: what they are called, their shapes, their dtype and the memory format of those of 4-D.

    ``fresh``: whether every step finds gradients that have just been allocated, as after a backward pass;
    ``grad_dtype``: of gradients that have not the parameters' dtype.
    """

    name: str
    shapes: Shapes
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    fresh: bool = False
    grad_dtype: torch.dtype | None = None

    @property
    def numel(self) -> int:
        """Elements in all parameters."""
        return sum(prod(shape) for shape in self.shapes)

    def parameters(self, seed: int = 0) -> list[Tensor]:
        """Freshly allocated normal parameters with normal gradients."""
        generator = torch.Generator().manual_seed(seed)
        params = []
        for shape in self.shapes:
            param, grad = (
                self._laid_out(torch.randn(shape, generator=generator).to(dtype))
                for dtype in (self.dtype, self.grad_dtype or self.dtype)
            )
            params.append(with_gradient(param, grad))
        return params

    def _laid_out(self, values: Tensor) -> Tensor:
        return values.contiguous(memory_format=self.memory_format) if values.dim() == 4 else values

    def before_step(self, params: list[Tensor]) -> None:
        """What happens to the parameters between two steps."""
        if self.fresh:
            for param in params:
                param.grad = gradient(param).clone()


def gradient(param: Tensor) -> Tensor:
    """The parameter's gradient, which those of a workload have."""
    assert param.grad is not None
    return param.grad


def with_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """The tensor as a parameter with this gradient, which may have another dtype."""
    param.requires_grad_()
    if grad.dtype != param.dtype:
        param.grad_dtype = grad.dtype
    param.grad = grad
    return param


def clone_parameters(params: list[Tensor]) -> list[Tensor]:
    """The same values in memory of their own, gradients included; drawing them anew takes much longer."""
    return [with_gradient(param.detach().clone(), gradient(param).clone()) for param in params]


BIG = Workload("16M fp32", ((16 * 2**20,),))
BIG_BF16 = Workload("16M bf16", BIG.shapes, torch.bfloat16)
OFFLOAD = Workload("16M fp32, bf16 gradients", BIG.shapes, grad_dtype=torch.bfloat16)
RESNET50 = Workload("ResNet-50, 161 tensors", resnet50_shapes())
RESNET50_CHANNELS_LAST = Workload("ResNet-50 in channels_last", RESNET50.shapes, memory_format=torch.channels_last)
SMALL = [
    Workload(f"{count:,} tensors of 1,000{', fresh gradients' if fresh else ''}", ((1000,),) * count, fresh=fresh)
    for count in (1000, 161, 10)
    for fresh in (False, True)
]
MANY = SMALL[0]
