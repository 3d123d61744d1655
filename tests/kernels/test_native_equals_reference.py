"""The native kernels against the reference, bit for bit.

Inventory x dtype x keep_prob x instruction set; all shapes and layouts in one parameter list.
"""

import functools

import pytest
import torch
from helpers import SCALAR_STATES, assert_same_bits, everything
from inventory import CASES, DTYPES, ISAS, MASKED_CASES, SEED, Case
from tensors import ALL, GUARD, MANY, MORE_LAYOUTS, TensorCase, guards_of, make_params, set_grads, unaligned

import lrtricks_fused as lrt
from lrtricks_fused.step import keep, reference
from lrtricks_fused.tools.verify.inventory import Storage

# A pure function of its arguments, of which these tests use few (test_keep_bits.py judges it): half the time saved.
cached_keep_mask = functools.cache(keep.keep_mask)
STEPS = 2
every_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)  # outermost: varies fastest


@pytest.fixture(autouse=True)
def _cache_masks(monkeypatch):
    monkeypatch.setattr(reference, "keep_mask", cached_keep_mask)


def run(case: Case, dtype: Storage, keep_prob: float, backend: str, cases=ALL, steps: int = STEPS, **extra):
    """Parameters and states after a few steps with a gradient weight that is no power of two."""
    params = make_params(cases, dtype.dtype)
    arguments = dict(keep_prob=keep_prob, seed=SEED, backend=backend, state_dtype=dtype.state_dtype)
    optimizer = case.make(params, **{**arguments, "grad_weight": 0.7, **extra})
    for step in range(steps):
        set_grads(params, cases, step)
        optimizer.step()
    return everything(optimizer)


@functools.lru_cache(maxsize=2)
def expected(case_name: str, dtype_name: str, keep_prob: float):
    """The reference's result, computed once for all instruction sets."""
    case = next(c for c in CASES if c.name == case_name)
    dtype = next(d for d in DTYPES if d.name == dtype_name)
    return run(case, dtype, keep_prob, "reference")


@every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize(("case", "keep_prob"), MASKED_CASES)
def test_native_equals_reference(case, dtype, keep_prob, isa):
    assert_same_bits(run(case, dtype, keep_prob, "native"), expected(case.name, dtype.name, keep_prob))


# 12 steps: beyond RAdam's change of branch (step 6 for beta2 = .999) and every power of the bias corrections.
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_many_steps(case):
    cases = [TensorCase((1500,)), TensorCase((7, 5))]
    native, reference = (run(case, DTYPES[0], 0.3, backend, cases, 12) for backend in ("native", "reference"))
    assert_same_bits(native, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES[::4], ids=lambda c: c.name)
def test_thread_count_changes_nothing(case, dtype, threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(case, dtype, 0.5, "native", [TensorCase((150_000,)), *MORE_LAYOUTS]))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_tensor_keep_prob_and_grad_weight(dtype):
    case = CASES[-1]
    plain = run(case, dtype, 0.3, "native", grad_weight=0.75)
    for scalar in (torch.float32, torch.float64):
        arguments = dict(keep_prob=torch.tensor(0.3, dtype=scalar), grad_weight=torch.tensor(0.75, dtype=scalar))
        for backend in ("native", "reference"):
            # A float32 0.3 has the same threshold as a float64 one.
            assert_same_bits(run(case, dtype, backend=backend, **arguments), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.name)
def test_nothing_is_written_outside_the_tensors(case, dtype, isa):
    params = make_params(MORE_LAYOUTS, dtype.dtype)
    optimizer = case.make(params, keep_prob=0.5, state_dtype=dtype.state_dtype, backend="native")
    for step in range(2):
        set_grads(params, MORE_LAYOUTS, step)
        optimizer.step()
        for state in optimizer.state.values():  # the states of unaligned tensors become unaligned too
            for name, tensor in state.items():
                if name not in SCALAR_STATES and tensor.is_contiguous():
                    state[name] = unaligned(tensor)
    set_grads(params, MORE_LAYOUTS, 2)
    grads = [param.grad.clone() for param in params]
    optimizer.step()
    states = [t for state in optimizer.state.values() for name, t in state.items() if name not in SCALAR_STATES]
    guards = [guards_of(tensor) for tensor in [*params, *states]]
    assert sum(guard.numel() for guard in guards) > 1000
    assert all((guard == GUARD).all() for guard in guards)
    assert_same_bits([param.grad for param in params], grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES[::2], ids=lambda c: c.name)
def test_special_values(case, dtype, isa):
    results = [_special(case, dtype, 0.5, backend) for backend in ("native", "reference")]
    assert_same_bits(*results)


def _special(case, dtype, keep_prob, backend):
    info = torch.finfo(dtype.dtype)
    specials = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        info.max,
        -info.max,
        info.tiny,
        info.smallest_normal / 4,
        float("inf"),
        -float("inf"),
        float("nan"),
        1e-3,
        -65000.0,
        1 + info.eps,
        0.3,
    ]
    grid = torch.cartesian_prod(*(torch.tensor(specials, dtype=torch.float64),) * 2).to(dtype.dtype)
    param = grid[:, 0].clone().repeat(5).requires_grad_()
    optimizer = case.make([param], keep_prob=keep_prob, backend=backend, state_dtype=dtype.state_dtype)
    for _ in range(2):
        param.grad = grid[:, 1].clone().repeat(5)
        optimizer.step()
    return everything(optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern_is_read_and_rounded_to_nearest_even(dtype, isa):
    # p - 1 * g over all p, for several g, against torch's own conversions: nothing of ours is in the expected value.
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for step, value in enumerate([0.0, 1.0, 2**-9, -3.0, 1e-7, 0.333]):
        param = patterns.clone().requires_grad_()
        param.grad = torch.full_like(param, value)
        lrt.SGD([param], lr=1.0, backend="native").step()
        wanted = (patterns.float() - torch.full_like(param, value).detach().float()).to(dtype)
        assert_same_bits([param], [wanted]), step
        reversed_grad = torch.zeros_like(patterns).requires_grad_()
        reversed_grad.grad = patterns.clone()
        lrt.SGD([reversed_grad], lr=1.0, backend="native").step()
        assert_same_bits([reversed_grad], [(0.0 - patterns.float()).to(dtype)])


@pytest.mark.parametrize("case", CASES[::10], ids=lambda c: c.name)
def test_more_layouts_and_many_tensors(case, threads):
    for cases in (MORE_LAYOUTS, MANY):
        threads(2)
        native = run(case, DTYPES[0], 0.5, "native", cases)
        threads(1)
        assert_same_bits(native, run(case, DTYPES[0], 0.5, "reference", cases))


def test_groups_of_mixed_dtypes_in_one_call():
    results = []
    for backend in ("native", "reference"):
        params = [make_params([TensorCase((700,))], dtype.dtype)[0] for dtype in DTYPES]
        optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend)
        for step in range(3):
            for i, param in enumerate(params):
                set_grads([param], [TensorCase((700,))], step * 10 + i)
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


def test_unknown_isa_is_refused(monkeypatch):
    monkeypatch.setenv("LRTRICKS_CPU_ISA", "mmx")
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="LRTRICKS_CPU_ISA=mmx"):
        lrt.SGD([param], lr=1.0, backend="native").step()
    assert torch.equal(param, torch.zeros(3))
