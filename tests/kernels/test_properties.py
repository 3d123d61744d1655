"""Hypothesis: any shape, hyper-parameters, masks and counts give native and reference the same bits.

Derandomised: the same examples in every run.
"""

import pytest
import torch
from helpers import assert_same_bits, everything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inventory import CASES, CLASSES, DTYPES
from tensors import (
    TensorCase,
    channels_last,
    contiguous,
    expanded,
    gapped,
    make_params,
    set_grads,
    transposed,
    unaligned,
)

import lrtricks_fused as lrt
from lrtricks_fused.step import keep

few = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
number = st.floats(0, 1, allow_subnormal=False)
betas = st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999))
eps = st.sampled_from([0.0, 1e-16, 1e-8, 1e-3])
HYPER = {
    lrt.SGD: st.one_of(
        st.fixed_dictionaries({"momentum": number, "dampening": number}),
        st.fixed_dictionaries({"momentum": st.floats(0.1, 1), "nesterov": st.booleans()}),
    ),
    lrt.Adam: st.fixed_dictionaries(
        {"betas": betas, "eps": eps, "amsgrad": st.booleans(), "decoupled_weight_decay": st.booleans()}
    ),
    lrt.AdamW: st.fixed_dictionaries({"betas": betas, "eps": eps, "amsgrad": st.booleans()}),
    lrt.RMSprop: st.fixed_dictionaries(
        {"alpha": number, "eps": eps, "momentum": st.sampled_from([0.0, 0.5]), "centered": st.booleans()}
    ),
    lrt.RAdam: st.fixed_dictionaries({"betas": betas, "eps": eps, "decoupled_weight_decay": st.booleans()}),
    lrt.AdaBelief: st.fixed_dictionaries({"betas": betas, "eps": eps, "decoupled_weight_decay": st.booleans()}),
}


def usual_options(cls):
    """Of a class without a strategy of its own: those of its variants."""
    return st.sampled_from([case.kwargs for case in CASES if case.ours is cls and isinstance(case.kwargs["lr"], float)])


common = st.fixed_dictionaries({
    "lr": st.floats(0, 2), "weight_decay": st.sampled_from([0.0, 0.01, 0.7]), "maximize": st.booleans(),
    "keep_prob": number, "grad_weight": st.floats(0, 3), "seed": st.integers(0, 2**64 - 1),
})  # fmt: skip


@st.composite
def tensor_cases(draw):
    """One to four tensors of 0 to 4 dimensions and up to about 3,000 elements, in any layout that fits."""
    cases = []
    for _ in range(draw(st.integers(1, 4))):
        ndim = draw(st.integers(0, 4))
        largest = {0: 1, 1: 2500, 2: 60, 3: 15, 4: 8}[ndim]
        shape = tuple(draw(st.lists(st.integers(0, largest), min_size=ndim, max_size=ndim)))
        layouts = [contiguous, unaligned]
        if ndim >= 1:
            layouts.append(gapped)
        if ndim >= 2:
            layouts.append(transposed)
        if ndim == 4:
            layouts.append(channels_last)
        grads = [*layouts, expanded] if all(shape) else layouts
        cases.append(TensorCase(shape, draw(st.sampled_from(layouts)), draw(st.sampled_from(grads))))
    return cases


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data())
@few
def test_native_equals_reference(cls, data):
    cases, dtype = data.draw(tensor_cases()), data.draw(st.sampled_from(DTYPES))
    arguments = {**data.draw(common), **data.draw(HYPER[cls] if cls in HYPER else usual_options(cls))}
    first_step = data.draw(st.sampled_from([0, 0, 5, 1000, 2**24]))
    results = []
    for backend in ("native", "reference"):
        params = make_params(cases, dtype.dtype)
        optimizer = cls(params, **arguments, backend=backend, state_dtype=dtype.state_dtype)
        for step in range(2):
            set_grads(params, cases, step)
            optimizer.step()
            for state in optimizer.state.values():
                state["step"] += first_step
        results.append(everything(optimizer))
    assert_same_bits(*results)


@given(keep_prob=number, seed=st.integers(0, 2**64 - 1), step=st.integers(1, 2**40), numel=st.integers(0, 3000))
@few
def test_masks_are_nested_and_prefixes_agree(keep_prob, seed, step, numel):
    # One draw per element: a larger keep_prob keeps all that a smaller one keeps; a longer tensor begins alike.
    mask = keep.keep_mask(torch.Size([numel]), keep_prob, seed, step, 3)
    wider = keep.keep_mask(torch.Size([numel]), min(1.0, keep_prob + 0.1), seed, step, 3)
    longer = keep.keep_mask(torch.Size([numel + 700]), keep_prob, seed, step, 3)
    assert not (mask & ~wider).any()
    assert torch.equal(mask, longer[:numel])
