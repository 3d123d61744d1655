"""Masked training against independent implementations: float64 formulas of the papers, the LRD authors' SGDM.

The masks come from opt.keep_mask, whose bits test_keep_bits.py checks.
"""

from functools import partial

import numpy
import oracle
import pytest
import torch
from helpers import SCALAR_STATES, clones, leaves, random_grads, same_bits
from inventory import CASES, SEED
from test_against_torch import arguments

import lrtricks_fused as lrt
from lrtricks_fused.step import reference

STEPS = 12  # RAdam rectifies from step 6 on for beta2 = .999, so both branches are masked
# Differences of two float64 evaluations of one formula: 1e-15 each, 1e-12 where RAdam's rho_t - 5 cancels or where
# AdaBelief's eps=1e-16 lets a variance be nearly 0.
FLOAT64 = dict(rtol=1e-11, atol=1e-13)
# fp32: a step loses a few ulp (6e-8) of a state of order 1 to 10; 12 steps.
FLOAT32 = dict(rtol=1e-5, atol=3e-6)


def settings_of(case, optimizer, grad_weight):
    group = optimizer.param_groups[0]
    values = {name: group[name] for name in oracle.Settings.__dataclass_fields__ if name in group}
    values["lr"] = float(values["lr"])
    return oracle.Settings(**{**values, "grad_weight": grad_weight})


# The reference once only: test_native_equals_reference.py has shown that both are the same bits.
RUNS = [("native", torch.float64, 0.4), ("native", torch.float64, 1.0), ("native", torch.float32, 0.4),
        ("reference", torch.float64, 0.4)]  # fmt: skip


@pytest.mark.parametrize(("backend", "dtype", "keep_prob"), RUNS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_masked_training_is_the_papers(case, dtype, keep_prob, backend):
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32
    params = leaves((1100,), (5, 7), dtype=dtype)
    optimizer = case.ours(params, **arguments(case.kwargs, dtype), keep_prob=keep_prob, grad_weight=0.7, seed=SEED,
                          backend=backend)  # fmt: skip
    settings = settings_of(case, optimizer, 0.7)
    twins = [oracle.Oracle(case.ours.__name__, param.detach().numpy(), settings) for param in params]
    for step in range(1, STEPS + 1):
        random_grads(params, step)
        optimizer.step()
        for param, twin in zip(params, twins, strict=True):
            twin.step(param.grad.numpy(), optimizer.keep_mask(param, step).numpy())
    for param, twin in zip(params, twins, strict=True):
        numpy.testing.assert_allclose(param.detach().numpy(), twin.param, **tolerance)
        for name, state in optimizer.state[param].items():
            if name not in {*SCALAR_STATES, "window_buffer"}:
                numpy.testing.assert_allclose(state.numpy(), twin.state[name], **tolerance)


def test_radam_changes_its_branch_within_these_steps():
    beta2 = 0.999
    rho_inf = 2 / (1 - beta2) - 1
    rectified = [rho_inf - 2 * t * beta2**t / (1 - beta2**t) > 5 for t in range(1, STEPS + 1)]
    assert rectified.index(True) == 5


def authors_sgdm(param, buf, grad, mask, h):
    """sgd_lrd.py of the LRD authors, in the operation order of spec 1.2; every operation rounds to fp32."""
    d_p = grad + h["weight_decay"] * param if h["weight_decay"] else grad
    buf = d_p.clone() if buf is None else buf * h["momentum"] + (1 - h["dampening"]) * d_p
    lr_dropout = h["lr"] * mask
    return param - lr_dropout * buf, buf


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("keep_prob", [0.5, 0.1])
@pytest.mark.parametrize(
    "hyper",
    [dict(), dict(weight_decay=0.05), dict(dampening=0.3), dict(weight_decay=5e-4, dampening=0.3, momentum=0.5)],
    ids=str,
)
def test_sgdm_is_the_authors_bit_for_bit(hyper, keep_prob, backend):
    hyper = {**dict(lr=0.03, momentum=0.9, dampening=0.0, weight_decay=0.0), **hyper}
    (param,) = leaves((3000,))
    wanted, buf = param.detach().clone(), None
    optimizer = lrt.SGD([param], **hyper, keep_prob=keep_prob, backend=backend)
    for step in range(1, 9):
        random_grads([param], step)
        mask = optimizer.keep_mask(param, step).float()
        wanted, buf = authors_sgdm(wanted, buf, param.grad, mask, hyper)
        optimizer.step()
        assert same_bits(param, wanted)
        assert same_bits(optimizer.state[param]["momentum_buffer"], buf)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_reference_in_float64_is_close_to_fp32(case, implement):
    # The reference is float64-able also for fp32 parameters: the same step, rounded only when it is stored.
    results = []
    for compute_dtype in (None, torch.float64):
        params = clones(leaves((1100,)))
        optimizer = case.make(params, keep_prob=0.5, backend="reference")
        implement("reference", partial(reference.step, compute_dtype=compute_dtype))
        for step in range(5):
            random_grads(params, step)
            optimizer.step()
        results.append(params[0].detach())
    assert results[0].dtype == results[1].dtype == torch.float32
    torch.testing.assert_close(*results, **FLOAT32)
