"""The Triton kernels at every alignment of every operand, and at every end of a tensor: the bits of the reference.

By default every operand lies at a few addresses, and tensors have a few numbers of elements; with LRTRICKS_FULL=1
(``make test-all``) at all offsets in 16 bytes, of every pair of dtypes, and all numbers from 1 to 1,100.
"""

import pytest
import torch
from helpers import SCALAR_STATES, assert_same_bits, everything
from inventory import DTYPES, FULL, INTERPRETED, RICH, SEED
from tensors import GUARD, guards_of, normal_values
from torch import Tensor
from triton_worker import interpreted

import lrtricks_fused as lrt
from lrtricks_fused.step import table
from lrtricks_fused.step.storage import STATE_DTYPES

BACKENDS = ("triton", "reference")
ADAM = next(case for case in RICH if case.ours is lrt.Adam)
ENDS = range(1, 1101) if FULL else [*range(1, 1101, 73), 8, 64, 128, 448, 511, 512, 513, 1023, 1024, 1025]
ACCESS = 16
OPERANDS = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
by_dtype = pytest.mark.parametrize("dtype", INTERPRETED, ids=lambda d: d.name)


def at(values: Tensor, offset: int) -> Tensor:
    """The values at this number of bytes behind a multiple of 16, guards on both sides."""
    size = values.element_size()
    buffer = torch.full((values.numel() + 3 * ACCESS // size,), GUARD, dtype=values.dtype)
    first = (offset - buffer.data_ptr()) % ACCESS // size + ACCESS // size
    view = buffer[first : first + values.numel()].view(values.shape)
    assert view.data_ptr() % ACCESS == offset
    return view.copy_(values)


def stepped(places: list[dict[str, int]], sizes: list[int], dtype, backend: str, case=ADAM, steps: int = 2, **more):
    """Everything after steps of tensors whose operands lie at these offsets (else at 0); nothing outside is written."""
    shapes = tuple((size,) for size in sizes)
    values = normal_values(shapes, dtype.dtype, 1)
    params = [at(v, place.get("param", 0)).requires_grad_() for v, place in zip(values, places, strict=True)]
    optimizer = case.make(params, keep_prob=0.5, seed=SEED, state_dtype=dtype.state_dtype, backend="reference", **more)
    for n in range(steps):
        grads = normal_values(shapes, dtype.dtype, 1000 + n)
        for param, grad, place in zip(params, grads, places, strict=True):
            param.grad = at(grad, place.get("grad", 0))
        optimizer.backend = backend if n else "reference"
        if n:
            for param, place in zip(params, places, strict=True):
                state = optimizer.state[param]
                state.update({k: at(t, place.get(k, 0)) for k, t in state.items() if k not in SCALAR_STATES})
        optimizer.step()
    states = [t for state in optimizer.state.values() for name, t in state.items() if name not in SCALAR_STATES]
    assert all((guards_of(tensor) == GUARD).all() for tensor in [*params, *(param.grad for param in params), *states])
    return everything(optimizer)


def offsets_of(dtype: torch.dtype) -> list[int]:
    """Of operands of this dtype, all but 0."""
    every = list(range(dtype.itemsize, ACCESS, dtype.itemsize))
    return every if FULL else sorted({every[0], every[-1], 8})


@by_dtype
@interpreted
def test_each_operand_at_each_alignment(dtype):
    places: list[dict[str, int]] = [{}]
    for operand in OPERANDS:
        own = dtype.dtype if operand in ("param", "grad") else dtype.state_dtype or STATE_DTYPES[dtype.dtype][0]
        places += [{operand: offset} for offset in offsets_of(own)]
    sizes = [table.CHUNK + 65] * len(places)
    assert_same_bits(*(stepped(places, sizes, dtype, backend) for backend in BACKENDS))


@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
@interpreted
def test_an_unaligned_gradient_of_every_rule(case):
    places = [{"grad": 8}, {"grad": 4, "param": 4}, {"grad": 12}]
    sizes = [table.CHUNK + 1, table.CHUNK, 130]
    for more in ({}, {"centralize": True}) if case is ADAM else ({},):
        assert_same_bits(*(stepped(places, sizes, DTYPES[0], b, case, **more) for b in BACKENDS))


@pytest.mark.parametrize("offset", [0, 8])
@interpreted
def test_every_end(offset):
    places = [{"grad": offset}] * len(ENDS)
    assert_same_bits(*(stepped(places, list(ENDS), DTYPES[0], backend) for backend in BACKENDS))
