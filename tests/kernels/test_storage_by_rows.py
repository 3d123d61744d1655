"""Kinds of storage that the CPU steps row by row (csrc/cpu/stored_kernel.h): the same bits as the reference."""

from typing import Any

import pytest
import torch
from helpers import assert_same_bits, everything
from inventory import RICH
from tensors import GUARD, guards_of, unaligned

from lrtricks_fused.step.keep import TILE

F32, BF16 = torch.float32, torch.bfloat16
STATES = {"state_dtype": BF16, "state_rounding": "stochastic"}
BY_ROWS: dict[str, tuple[torch.dtype, torch.dtype, dict[str, Any]]] = {
    "fp32, bf16 gradients": (F32, BF16, {}),
    "offload": (F32, BF16, {"mirror": True}),
    "offload, changes": (F32, BF16, {"mirror": True, "track_changes": True}),
    "bf16, changes": (BF16, BF16, {"state_dtype": F32, "track_changes": True}),
    "bf16, stochastic": (BF16, BF16, {"state_dtype": F32, "rounding": "stochastic"}),
    "split": (BF16, BF16, {"state_dtype": F32, "master": "split"}),
    "fp32, stochastic states": (F32, F32, STATES),
    "bf16, all stochastic": (BF16, BF16, {"rounding": "stochastic", **STATES}),
}
by_kind = pytest.mark.parametrize("kind", BY_ROWS.values(), ids=BY_ROWS.keys())
# Rules whose state is not a ring of gradients, which is not stored in 16 bits.
by_case = pytest.mark.parametrize("case", [c for c in RICH if "momentum_window" not in c.kwargs], ids=lambda c: c.name)


def normal(count: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, generator=generator).to(dtype)


def any_bits(count: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Numbers of every size, subnormal ones, ties, infinities: random bits, a third of them of few digits.

    NaN are made by the steps; torch's own conversions do not give them one payload, by which bits may have changed.
    """
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
    bits[::3] &= -(2**15)  # bfloat16 with the bit by which it is a tie
    return bits.view(F32).nan_to_num(1.5, torch.inf, -torch.inf).to(dtype)


def a_nan_in_each_row(count: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """NaN is one of 65 elements, so one of each row, at every place; with a payload by which added bits carry."""
    values = normal(count, dtype, generator)
    integer = torch.int32 if dtype == F32 else torch.int16
    values.view(integer)[::65] = torch.iinfo(integer).max
    return values


def run(case, kind, backend, values=normal, count=5 * TILE + 130, layout=torch.clone, **options):
    """What two steps leave: everything, and guards where the layout has some."""
    dtype, grad_dtype, arguments = kind
    arguments = {**arguments, **options}
    generator = torch.Generator().manual_seed(3)
    has_mirror = arguments.pop("mirror", False)
    params = [layout(values(count, dtype, generator)).requires_grad_() for _ in range(2)]
    outs = [layout(torch.full((count,), 3.0, dtype=BF16)) for _ in range(2 * has_mirror)]
    optimizer = case.make(params, backend=backend, **{"keep_prob": 0.5, **arguments})
    for param, out in zip(params, outs, strict=False):
        optimizer.mirror(param, out)
    for _ in range(2):
        for param in params:
            param.grad = None
            param.grad_dtype = grad_dtype
            param.grad = layout(values(count, grad_dtype, generator))
        optimizer.step()
    changes = optimizer.pop_changes().values() if optimizer.track_changes else ()
    packed = [tensor for change in changes for tensor in (change.bitmap, change.values)]
    return [*everything(optimizer), *outs, *packed], [*params, *outs, *(param.grad for param in params)]


@by_kind
@by_case
@pytest.mark.parametrize("values", [normal, any_bits])
def test_native_equals_reference(case, kind, values, isa):
    assert_same_bits(run(case, kind, "native", values)[0], run(case, kind, "reference", values)[0])


@pytest.mark.parametrize("kind", [kind for name, kind in BY_ROWS.items() if "stochastic" in name])
@by_case
def test_a_nan_among_numbers_is_rounded_as_one(case, kind, isa):
    native, reference = (run(case, kind, backend, a_nan_in_each_row)[0] for backend in ("native", "reference"))
    assert_same_bits(native, reference)


@by_kind
def test_masks_lengths_and_operands_at_any_address(kind, isa):
    for keep_prob in (0.0, 0.3, 1.0):
        for count in (TILE - 1, TILE, 2 * TILE + 1):
            options = {"keep_prob": keep_prob, "count": count, "layout": unaligned}
            native, stepped = run(RICH[1], kind, "native", **options)
            assert_same_bits(native, run(RICH[1], kind, "reference", **options)[0])
            guards = [guards_of(tensor) for tensor in stepped]
            assert all(guard.numel() and (guard == GUARD).all() for guard in guards)


@by_kind
def test_threads_and_sums_change_nothing(kind, threads):
    count = 70 * TILE + 3  # more than one thread's share
    threads(2)
    native = run(RICH[1], kind, "native", count=count)[0]
    assert_same_bits(native, run(RICH[1], kind, "native", count=count, track_metrics=True)[0])
    threads(1)
    assert_same_bits(native, run(RICH[1], kind, "native", count=count)[0])
