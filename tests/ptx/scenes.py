"""What is stepped by the PTX and by the reference: a scene is a few steps of one variant in one pair of types.

Each takes a variant, a pair of types and a backend, and gives all tensors that the steps leave.
"""

import itertools
from collections.abc import Callable
from functools import partial

import test_centralize
import test_channels_last
import test_clip
import test_index_maps
import test_native_equals_reference
import test_slope
import test_storage
import torch
from helpers import SCALAR_STATES, everything
from inventory import CASES, SEED, Case
from tensors import GUARD, TensorCase, guards_of, make_params, set_grads, unaligned
from torch import Tensor

from lrtricks_fused.tools.verify.inventory import Storage

Scene = Callable[[Case, Storage, str], list[Tensor]]
CHUNK = 8192
# No elements, one, the borders of a row, a tile and a chunk; several chunks.
SHAPES = [TensorCase(shape) for shape in [(0,), (), (1,), (63,), (65,), (3, 5, 7), (511,), (512,), (1027,), (CHUNK,),
                                          (2 * CHUNK + 3617,)]]  # fmt: skip
OFFSETS = range(1, 16)  # bytes


def steps(case: Case, dtype: Storage, backend: str, keep_prob: float = 0.5, count: int = 2) -> list[Tensor]:
    """With everything as it usually is."""
    return test_native_equals_reference.run(case, dtype, keep_prob, backend, SHAPES, count)


def ends(case: Case, dtype: Storage, backend: str, sizes: range = range(1, 1101)) -> list[Tensor]:
    """Tensors of every size."""
    shapes = [TensorCase((size,)) for size in sizes]
    return test_native_equals_reference.run(case, dtype, 0.5, backend, shapes, 1)


def special_values(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Zeros, infinities, subnormals, and what is not a number, against each other."""
    return test_native_equals_reference._special(case, dtype, 0.5, backend)


def offset(values: Tensor, elements: int) -> Tensor:
    """The same, so many elements behind an address of 16 bytes, with guards on both sides."""
    buffer = torch.full((values.numel() + 2 * elements + 16,), GUARD, dtype=values.dtype)
    begin = -buffer.data_ptr() % 16 // values.element_size() + elements
    return buffer[begin : begin + values.numel()].view(values.shape).copy_(values)


def at_offsets(case: Case, dtype: Storage, backend: str, moved: tuple[str, ...], elements: int) -> list[Tensor]:
    """One step, the second, of parameters, gradients and states, of which ``moved`` are not aligned.

    ``moved`` names "param", "grad" and states. Nothing is written outside of the tensors.
    """
    shapes = [TensorCase((CHUNK + 577,)), TensorCase((1027,)), TensorCase((70,))]
    values = [param.detach() for param in make_params(shapes, dtype.dtype)]
    params = [offset(value, elements * ("param" in moved)).requires_grad_() for value in values]
    optimizer = case.make(params, keep_prob=0.5, seed=SEED, state_dtype=dtype.state_dtype, backend="reference")
    tensors: list[Tensor] = list(params)
    for n in range(2):
        set_grads(params, shapes, n)
        if n == 1:
            optimizer.backend = backend
            for param in params:
                param.grad = offset(param.grad, elements * ("grad" in moved))
                for name, tensor in optimizer.state[param].items():
                    if name not in SCALAR_STATES:
                        optimizer.state[param][name] = offset(tensor, elements * (name in moved))
                        tensors.append(optimizer.state[param][name])
        optimizer.step()
    assert all((guards_of(tensor) == GUARD).all() for tensor in tensors)
    return everything(optimizer)


def operands_of(case: Case) -> list[str]:
    """Parameter, gradient and the states of a variant, by name."""
    param = torch.ones(1, requires_grad=True)
    param.grad = torch.ones(1)
    optimizer = case.make([param], backend="reference")
    optimizer.step()
    return ["param", "grad", *(name for name in optimizer.state[param] if name not in SCALAR_STATES)]


def alignments(case: Case, dtype: Storage, backend: str, offsets: range = range(8, 9)) -> list[Tensor]:
    """Every operand by itself, and all of them, at offsets of so many bytes that the types can have."""
    each = [(name,) for name in operands_of(case)]
    found = []
    for moved, size in itertools.product([*each, tuple(name for (name,) in each)], offsets):
        if size % max(dtype.dtype.itemsize, (dtype.state_dtype or dtype.dtype).itemsize) == 0:
            elements = size // dtype.dtype.itemsize
            found += at_offsets(case, dtype, backend, moved, elements)
    return found


def scalars_in_tensors(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Scalars that only the kernels read, of both types, and steps that an overflow skips."""
    params = make_params(SHAPES[:9], dtype.dtype)
    scalars = {name: torch.tensor(0.0, dtype=kind) for name, kind in (
        ("lr", torch.float64), ("keep_prob", torch.float32), ("grad_weight", torch.float64))}  # fmt: skip
    optimizer = case.make(params, seed=SEED, backend=backend, state_dtype=dtype.state_dtype, **scalars)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(3.0), torch.tensor(0.0)
    for n in range(4):
        for scalar, value in zip(scalars.values(), (0.01, 0.3, 0.7), strict=True):
            scalar.fill_(value / (n + 1))
        optimizer.grad_scale.fill_(1.5 + n)
        optimizer.found_inf.fill_(n in (0, 2))
        set_grads(params, SHAPES[:9], n)
        optimizer.step()
    return everything(optimizer)


def centralized(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Short slices and long ones, with slopes; aligned and not."""
    shapes = [*test_centralize.SHAPES, TensorCase((2, 4500), unaligned, unaligned), TensorCase((3, 8193))]
    return test_centralize.run(case, dtype, backend, shapes)


def shards(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Parts of larger parameters, with slopes; aligned and not."""
    return test_index_maps.run(case, dtype, backend, test_index_maps.CONTIGUOUS)


def clipped(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Norms, and steps by gradients that they limit."""
    return test_clip.run(case, dtype, backend)


def memory_order(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Tensors one dimension of which lies innermost, among others, aligned and not; by gradients that norms limit."""
    shifted = test_channels_last.alike(40, 64, 3, 3, layout=unaligned_channels_last)
    return test_channels_last.run(case, dtype, backend, [*test_channels_last.SHAPES, shifted], max_norm=0.75)[0]


def unaligned_channels_last(values: Tensor) -> Tensor:
    """NHWC memory of an NCHW tensor, one element off every alignment, with guards on both sides."""
    return unaligned(values.movedim(1, -1)).movedim(-1, 1)


def slopes(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """Slopes, and the steps that have them."""
    return test_slope.run(case, dtype, backend, [*test_slope.SHAPES, TensorCase((700,), unaligned, unaligned)])


def many_tensors(case: Case, dtype: Storage, backend: str) -> list[Tensor]:
    """More than one upload, block of counts, and column of sums takes."""
    shapes = [TensorCase((1 + 37 * i % 90,)) for i in range(600)]
    return test_slope.run(case, dtype, backend, shapes, steps=1)


def stored_otherwise(case: Case, dtype: Storage, backend: str, stored: str) -> list[Tensor]:
    """Tensors that are stored otherwise than they are stepped, whatever the pair of types says.

    A whole chunk and one that ends anywhere, ends within a tile, an operand that is not aligned.
    """
    shapes = [TensorCase((CHUNK + 65,)), TensorCase((3, 216)), TensorCase((7,)),
              TensorCase((704,), unaligned, unaligned)]  # fmt: skip
    return test_storage.run(case, test_storage.STORED[stored], backend, shapes)


RINGS = [case for case in CASES if "momentum_window" in case.kwargs]  # which have no kernels by storage
STORAGE: dict[str, Scene] = {name: partial(stored_otherwise, stored=name) for name in test_storage.STORED}
TRICKS: dict[str, Scene] = {
    "unmasked": partial(steps, keep_prob=1.0),
    "none kept": partial(steps, keep_prob=0.0),
    "12 steps": partial(steps, count=12),
    "special values": special_values,
    "alignments": alignments,
    "scalars in tensors": scalars_in_tensors,
    "centralized": centralized,
    "shards": shards,
    "clipped": clipped,
    "channels_last": memory_order,
    "slopes": slopes,
}
EXHAUSTIVE: dict[str, Scene] = {
    "steps": steps,
    **TRICKS,
    "ends": ends,
    "many tensors": many_tensors,
    "every alignment": partial(alignments, offsets=OFFSETS),
}
