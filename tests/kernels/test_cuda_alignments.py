"""The CUDA kernels on the host at every alignment of every operand by itself, and at every end of a tensor.

With norms of gradients and slopes, whose kernels read at the same addresses. LRTRICKS_FULL=1 (``make test-all``) runs
every case of the inventory, else a few of them.
"""

import contextlib
import itertools

import pytest
import torch
from helpers import SCALAR_STATES, assert_same_bits, everything
from inventory import CASES, DTYPES, FULL, RICH
from tensors import GUARD, TensorCase, guards_of, make_params, set_grads, shifted
from test_native_equals_reference import _cache_masks  # noqa: F401 (a fixture that holds here, too)

ACCESS = 16  # bytes of the widest access
TILES_AND_REST = 2600  # more tiles than are stepped a lane a thread
OPERANDS = 1 + 5 * (ACCESS // 2 - 1)  # of a rule of three states, each operand at every alignment
ENDS = [range(1, 1101), range(TILES_AND_REST, TILES_AND_REST + 1100, 1 if FULL else 29)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", CASES if FULL else RICH, ids=lambda c: c.name)
# Every pair of them, or two pairs.
PAIRS = [*itertools.product(RICH, DTYPES)] if FULL else [*zip(RICH[::5], DTYPES, strict=False)]


def run(case, dtype, backend, sizes, before_step=lambda optimizer: None):
    """The optimizer after a step that makes the states, one more, and one whose slope is asked for; and that slope."""
    cases = [TensorCase((size,)) for size in sizes]
    params = make_params(cases, dtype.dtype)
    # The reference's norm of a thousand tensors takes seconds.
    max_norm = 1.0 if FULL or len(sizes) < 100 else None
    arguments = dict(keep_prob=0.5, state_dtype=dtype.state_dtype, max_norm=max_norm)
    optimizer = case.make(params, backend=backend, **arguments)
    slopes: dict[torch.device, torch.Tensor] = {}
    for step in range(3):
        set_grads(params, cases, step)
        if step > 0:
            before_step(optimizer)
        with optimizer.add_slopes_to(slopes) if step == 2 else contextlib.nullcontext():
            optimizer.step()
    return optimizer, next(iter(slopes.values()))


def operands(optimizer, param):
    """What a step of the parameter reads, by name."""
    states = {name: tensor for name, tensor in optimizer.state[param].items() if name not in SCALAR_STATES}
    return {"param": param.detach(), "grad": param.grad, **states}


def shift_operands(optimizer):
    """Moves one operand of each parameter off its alignment: every operand, by every offset; the first are left."""
    params = optimizer.param_groups[0]["params"]
    moves = [
        (name, offset)
        for name, tensor in operands(optimizer, params[0]).items()
        for offset in range(1, ACCESS // tensor.element_size())
    ]
    for param, (name, offset) in zip(params[-len(moves) :], moves, strict=True):
        moved = shifted(operands(optimizer, param)[name], offset)
        if name == "param":
            param.data = moved
        elif name == "grad":
            param.grad = moved
        else:
            optimizer.state[param][name] = moved


@by_dtype
@by_case
def test_every_alignment_of_every_operand(case, dtype, on_host):
    results = []
    for backend in ("native", "reference"):
        optimizer, slope = run(case, dtype, backend, [TILES_AND_REST] * OPERANDS, shift_operands)
        of_all = [operands(optimizer, param).values() for param in optimizer.param_groups[0]["params"]]
        moved = [tensor for tensors in of_all for tensor in tensors if tensor.data_ptr() % ACCESS]
        assert len(moved) >= len(of_all[0])
        assert all((guards_of(tensor) == GUARD).all() for tensor in moved)
        results.append([slope, *everything(optimizer)])
    assert_same_bits(*results)


@pytest.mark.parametrize("sizes", ENDS, ids=["few tiles", "after whole tiles"])
@pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=lambda x: x.name)
def test_every_end(case, dtype, sizes, on_host):
    results = []
    for backend in ("native", "reference"):
        optimizer, slope = run(case, dtype, backend, sizes)
        results.append([slope, *everything(optimizer)])
    assert_same_bits(*results)
