"""Clipping in the step: torch.nn.utils.clip_grad_norm_'s, and the same bits by every backend and thread count.

Triton's kernels: test_triton_clip.py.
"""

import copy
import math

import pytest
import torch
from helpers import assert_same_bits, call_of, clones, everything, leaves, random_grads, same_bits
from inventory import CASES, DTYPES, RICH
from tensors import LAYOUTS, TensorCase, channels_last, make_params, set_grads

import lrtricks_fused as lrt
from lrtricks_fused.step.backends import resolve
from lrtricks_fused.step.keep import TILE
from lrtricks_fused.step.sums import SLOPE_COLUMNS

CPU = torch.device("cpu")
CHUNK = 16 * TILE
SHAPES = [
    TensorCase((0,)), TensorCase(()), TensorCase((65,)), TensorCase((513,)), TensorCase((CHUNK + 1300,)),
    TensorCase((3, 0)), TensorCase((2 * CHUNK,)),
]  # fmt: skip
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])
# What fp32 sums of squares cost: chains of at most 8 rows and 8 lanes round by 2**-24 each, and then it is double.
NORM_RTOL = {torch.float64: 1e-14, torch.float32: 16 * 2.0**-24, torch.bfloat16: 16 * 2.0**-24}


def run(case, dtype, backend, shapes=SHAPES, max_norm=0.75, steps=2, **arguments):
    """Norms of some steps, and all parameters and states after them."""
    params = make_params(shapes, dtype.dtype)
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.02}]
    kwargs = dict(keep_prob=0.5, grad_weight=0.7, state_dtype=dtype.state_dtype, **arguments)
    optimizer = case.make(groups, max_norm=max_norm, backend=backend, **kwargs)
    norms = []
    for step in range(steps):
        set_grads(params, shapes, step)
        optimizer.step()
        norms.append(optimizer.grad_norm.clone())
    return [*norms, *everything(optimizer)]


@by_dtype
@by_case
def test_native_equals_reference(case, dtype, isa):
    shapes = [*SHAPES, *LAYOUTS, TensorCase((2, 8, 9, 9), channels_last, channels_last)]
    assert_same_bits(run(case, dtype, "native", shapes), run(case, dtype, "reference", shapes))


@by_dtype
def test_a_table_in_channels_last_equals_reference(dtype, isa):
    shapes = [TensorCase((5, 8, 9, 9), channels_last, channels_last)] * 4  # alone: with others there is no table
    assert_same_bits(run(RICH[1], dtype, "native", shapes), run(RICH[1], dtype, "reference", shapes))


@by_dtype
@by_case
def test_cuda_on_host_equals_reference(case, dtype, on_host):
    # The squares of channels_last gradients are summed in the order of indices, which is not that of their memory.
    shapes = [*SHAPES, *LAYOUTS, TensorCase((2, 8, 9, 9), channels_last, channels_last)]
    assert_same_bits(run(case, dtype, "native", shapes), run(case, dtype, "reference", shapes))


@by_dtype
def test_a_table_in_channels_last_of_cuda_on_host(dtype, on_host):
    shapes = [*SHAPES, *[TensorCase((5, 8, 9, 9), channels_last, channels_last)] * 2]  # none of which is copied
    assert_same_bits(run(RICH[1], dtype, "native", shapes), run(RICH[1], dtype, "reference", shapes))


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.name)
def test_every_rule(case):
    assert_same_bits(*(run(case, DTYPES[0], backend) for backend in ("native", "reference")))


def test_thread_count_changes_nothing(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(RICH[1], DTYPES[0], "native", [TensorCase((300_001,)), *SHAPES, *LAYOUTS]))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("on_device", [False, True])
def test_more_tensors_and_more_chunks_than_columns(on_device, request):
    if on_device:
        request.getfixturevalue("on_host")
    for shapes in ([TensorCase((3,))] * (2 * SLOPE_COLUMNS + 5), [TensorCase(((SLOPE_COLUMNS + 3) * CHUNK + 1,))] * 4):
        assert_same_bits(*(run(RICH[0], DTYPES[0], backend, shapes, steps=1) for backend in ("native", "reference")))


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm(dtype, backend):
    params = leaves((700,), (3, CHUNK), (5,), dtype=dtype)
    optimizer = lrt.Adam(params, max_norm=1.0, backend=backend)
    random_grads(params, 0)
    optimizer.step()
    expected = torch.cat([param.grad.double().flatten() for param in params]).norm()
    assert optimizer.grad_norm.shape == () and optimizer.grad_norm.dtype == torch.float64
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=NORM_RTOL[dtype], atol=0)


@both_backends
@by_case
@pytest.mark.parametrize("max_norm", [0.3, 1e6, 0.0, math.inf])
def test_is_clip_grad_norm_and_a_step(case, max_norm, backend):
    ours, theirs = leaves((700,), (40, 30), dtype=torch.float64), leaves((700,), (40, 30), dtype=torch.float64)
    clipped, plain = case.make(ours, max_norm=max_norm, backend=backend), case.make(theirs, backend=backend)
    for step in range(3):
        random_grads(ours, step)
        random_grads(theirs, step)
        before = [param.grad.clone() for param in ours]
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        clipped.step()
        plain.step()
        torch.testing.assert_close(clipped.grad_norm, norm, rtol=1e-14, atol=0)
        assert_same_bits([param.grad for param in ours], before)
    # The factor is rounded elsewhere, by some 1e-16, which a division by a small sqrt(v) can multiply.
    torch.testing.assert_close(everything(clipped), everything(plain), rtol=1e-10, atol=1e-13)


@both_backends
@by_dtype
@by_case
def test_a_norm_below_the_bound_changes_no_bit(case, dtype, backend):
    assert_same_bits(*(run(case, dtype, backend, max_norm=bound)[2:] for bound in (1e6, math.inf)))


@both_backends
def test_the_factor_is_of_the_gradient_before_weight_decay(backend):
    params = [torch.full((4,), 2.0, dtype=torch.float64, requires_grad=True)]
    optimizer = lrt.SGD(params, lr=1.0, weight_decay=0.25, grad_weight=0.5, max_norm=1.0, backend=backend)
    params[0].grad = torch.full((4,), 4.0, dtype=torch.float64)  # norm 8, so each element becomes 1/2
    optimizer.step()
    expected = 2.0 - (0.5 * 0.5 * 8 / (8 + 1e-6) + 0.25 * 2.0)
    torch.testing.assert_close(params[0].detach(), torch.full((4,), expected, dtype=torch.float64), rtol=1e-15, atol=0)


@both_backends
@pytest.mark.parametrize("groups", [[(0, 1, 2)], [(0,), (1, 2)], [(2,), (0, 1)]], ids=str)
def test_all_groups_have_one_norm(groups, backend):
    params = leaves((7,), (30,), (4, 5))
    optimizer = lrt.SGD([{"params": [params[i] for i in group]} for group in groups], lr=1.0, max_norm=0.5,
                        backend=backend)  # fmt: skip
    random_grads(params, 0)
    before = clones(params)
    optimizer.step()
    moved = torch.cat([(b - p).flatten() for b, p in zip(before, params, strict=True)]).norm()
    torch.testing.assert_close(moved, torch.tensor(0.5), rtol=1e-5, atol=0)  # differences of fp32 numbers around 1


@both_backends
def test_parameters_without_gradient_do_not_count(backend):
    params = leaves((7,), (30,), (4, 5))
    optimizer = lrt.SGD(params, max_norm=0.5, backend=backend)
    random_grads(params, 0)
    params[1].grad = None
    optimizer.step()
    expected = torch.cat([params[i].grad.flatten() for i in (0, 2)]).double().norm()
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=1e-6, atol=0)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.grad_norm == 0


def test_dtypes_and_calls_of_a_group_do_not_matter():
    # A backend may take dtypes and layouts in calls of their own; the first step takes new momenta in another.
    results = []
    for backend in ("native", "reference"):
        for together in (True, False):
            params = [*leaves((70,), (33,)), *leaves((9,), (300,), dtype=torch.float64), *leaves((70,), (33,), seed=2)]
            params = [params[i] for i in (0, 2, 1, 3, 4, 5)]
            optimizer = lrt.SGD(params, momentum=0.9, dampening=0.5, max_norm=0.5, backend=backend)
            if not together:
                gather = optimizer._gather
                optimizer._gather = lambda *args, gather=gather: [
                    part.some((part.key, dtype), own)
                    for part in gather(*args)
                    for dtype in (torch.float64, torch.float32)
                    if (own := [i for i, param in enumerate(part.params) if param.dtype == dtype])
                ]
            norms = []
            for step in range(3):
                random_grads(params, step)
                if step == 0:
                    params[1].grad = None
                optimizer.step()
                norms.append(optimizer.grad_norm)
            results.append([*norms, *everything(optimizer)])
    for other in results[1:]:
        assert_same_bits(other, results[0])


@both_backends
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_zeros_and_what_is_not_finite_go_the_way_of_torch(value, backend):
    ours, theirs = leaves((4,), (3,)), leaves((4,), (3,))
    for params in (ours, theirs):
        for param in params:
            param.grad = torch.zeros_like(param)
        params[1].grad[1] = value
    clipped, plain = (
        lrt.SGD(params, lr=0.5, max_norm=bound, backend=backend) for params, bound in ((ours, 2.0), (theirs, None))
    )
    norm = torch.nn.utils.clip_grad_norm_(theirs, 2.0)
    clipped.step()
    plain.step()
    assert same_bits(clipped.grad_norm, norm.double())
    assert_same_bits(everything(clipped), everything(plain))


@both_backends
@pytest.mark.parametrize("fused", [True, None])
def test_with_a_grad_scaler_the_norm_is_of_the_unscaled_gradients(fused, backend):
    results = []
    for scale in (1.0, 1024.0):
        params = leaves((700,), (5,))
        optimizer = lrt.Adam(params, keep_prob=0.5, fused=fused, max_norm=0.5, backend=backend)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        for step in range(4):
            random_grads(params, step)
            scaler.scale(torch.ones(()))  # initialises it
            for param in params:
                param.grad *= scale
            if step == 2:
                params[0].grad[0] = math.inf
                before = [tensor.clone() for tensor in everything(optimizer)]
            scaler.step(optimizer)
            if step == 2:
                assert_same_bits(everything(optimizer), before)
                if fused:  # otherwise the scaler has not called it
                    assert optimizer.grad_norm == math.inf
            scaler.update(scale)
        results.append([optimizer.grad_norm, *everything(optimizer)])
    assert_same_bits(*results)  # a power of two changes no bit


@both_backends
def test_a_slope_is_that_of_the_gradient_itself(backend):
    params = leaves((700,), dtype=torch.float64)
    optimizer, slopes = lrt.SGD(params, lr=0.1, max_norm=0.5, backend=backend), {}
    random_grads(params, 0)
    before = clones(params)
    with optimizer.add_slopes_to(slopes):
        optimizer.step()
    expected = (params[0].grad * (before[0] - params[0])).sum().detach()
    torch.testing.assert_close(slopes[CPU], expected, rtol=1e-12, atol=0)


def test_list_and_table_ops_agree():
    params = leaves((700,), (3, CHUNK), (0,), (5,))
    random_grads(params, 0)
    call, native = call_of(lrt.SGD(params, backend="native")), resolve("native", CPU)
    native.prepare(call)
    assert call.table.rows is not None
    of_table, of_list = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    native.squares(call, of_table)
    torch.ops.lrtricks_fused.squared_norms_(call.grads, of_list)
    assert torch.equal(of_table, of_list) and of_list[0] != of_list[1] and of_list[2] == 0


def test_opcheck():
    grads = [torch.randn(700), torch.randn(3, 5).T, torch.zeros(0)]
    squares, number = torch.zeros(3 + SLOPE_COLUMNS, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    torch.library.opcheck(torch.ops.lrtricks_fused.squared_norms_.default, [grads, squares[:3]])
    for scale in (None, torch.tensor(2.0)):
        given = [squares, number, number.clone(), scale, 0.5]
        torch.library.opcheck(torch.ops.lrtricks_fused.write_clip_.default, given)


@pytest.mark.parametrize(
    ("squares", "norm"),
    [(torch.zeros(3), torch.zeros((), dtype=torch.float64)), (torch.zeros(300, dtype=torch.float64), torch.zeros(2))],
)
def test_wrong_numbers_are_refused(squares, norm):
    with pytest.raises(RuntimeError, match="Invalid"):
        torch.ops.lrtricks_fused.write_clip_(squares, norm, norm, None, 0.5)
    with pytest.raises(RuntimeError, match="Invalid squares"):
        torch.ops.lrtricks_fused.squared_norms_([torch.ones(3)], squares)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
def test_a_compiled_step(case=RICH[1]):
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        params = leaves((6, 50), (700,), (0,))
        groups = [{"params": params[:1]}, {"params": params[1:], "keep_prob": 0.3}]
        optimizer = case.make(groups, max_norm=0.5, backend="native")
        step = torch.compile(optimizer.step, fullgraph=True, backend="eager") if compiled else optimizer.step
        norms = []
        for number in range(3):
            random_grads(params, number)
            step()
            norms.append(optimizer.grad_norm.clone())
        results.append([*norms, *everything(optimizer)])
    assert_same_bits(*results)


def test_grad_norm_is_of_the_last_step_that_measured():
    params = leaves((7,))
    optimizer = lrt.SGD(params)
    random_grads(params, 0)
    assert optimizer.grad_norm is None
    optimizer.step()
    assert optimizer.grad_norm is None
    optimizer.max_norm = math.inf
    optimizer.step()
    first = optimizer.grad_norm
    assert first > 0 and optimizer.grad_norm is first
    assert copy.deepcopy(optimizer).grad_norm is None and copy.deepcopy(optimizer).max_norm == math.inf
    params[0].grad *= 2
    optimizer.step()
    assert same_bits(optimizer.grad_norm, 2 * first)  # and the first is what it was
    optimizer.max_norm = None
    optimizer.step()
    assert optimizer.grad_norm is None


@pytest.mark.parametrize("steps", [1, 8])
def test_gradients_of_several_dtypes_in_one_group(steps):
    results = []
    for backend in ("native", "reference"):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 800)) for _ in range(2)]
        params[0].grad_dtype = None
        optimizer = lrt.SGD(params, lr=0.1, max_norm=1.0, backend=backend)
        params[0].grad, params[1].grad = torch.ones(800).bfloat16(), torch.ones(800)
        norms = []
        for _ in range(steps):
            optimizer.step()
            norms.append(optimizer.grad_norm)
        assert norms[-1] == 40.0
        results.append([param.detach() for param in params])
    assert_same_bits(*results)
