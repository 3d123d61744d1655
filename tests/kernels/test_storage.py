"""Operands that are stored otherwise than they are stepped: the same bits by every backend, and what they promise."""

import itertools

import pytest
import torch
from helpers import assert_same_bits, everything
from inventory import RICH
from tensors import LAYOUTS, TensorCase, channels_last, make_params

import lrtricks_fused as lrt
from lrtricks_fused.step.keep import TILE, IndexMap

CPU = torch.device("cpu")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = [
    TensorCase((0,)), TensorCase(()), TensorCase((65,)), TensorCase((2 * TILE + 130,)), TensorCase((3, 64)),
    TensorCase((3, 216)),
]  # fmt: skip
STORED = {
    "fp32, bf16 gradients": (F32, BF16, {}),
    "fp32, fp16 gradients": (F32, F16, {}),
    "bf16, fp32 gradients": (BF16, F32, {}),
    "fp16, fp32 gradients, fp16 states": (F16, F32, {"state_dtype": F16}),
    "offload": (F32, BF16, {"mirror": BF16, "track_changes": True}),
    "offload, stochastic bf16 states": (F32, BF16, {
        "mirror": BF16, "state_dtype": BF16, "state_rounding": "stochastic"}),
    "fp16 mirror": (F32, F32, {"mirror": F16}),
    "split": (BF16, BF16, {"master": "split", "track_changes": True}),
    "split, fp32 gradients, bf16 states": (BF16, F32, {"master": "split", "state_dtype": BF16}),
    "stochastic bf16": (BF16, BF16, {"rounding": "stochastic", "track_changes": True}),
    "stochastic fp16": (F16, F16, {"rounding": "stochastic", "state_dtype": F16, "state_rounding": "stochastic"}),
    "stochastic bf16 and states": (BF16, F32, {
        "rounding": "stochastic", "state_dtype": BF16, "state_rounding": "stochastic"}),
    "stochastic bf16 and states, bf16 gradients": (BF16, BF16, {
        "rounding": "stochastic", "state_dtype": BF16, "state_rounding": "stochastic"}),
    "fp32, bf16 states": (F32, F32, {"state_dtype": BF16}),
    "fp32, stochastic bf16 states": (F32, F32, {
        "state_dtype": BF16, "state_rounding": "stochastic", "track_changes": True}),
    "changes alone": (F32, F32, {"track_changes": True}),
}  # fmt: skip
by_storage = pytest.mark.parametrize("stored", STORED.values(), ids=STORED.keys())
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])


def set_grads(params, dtype, step):
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = None
        param.grad_dtype = dtype
        param.grad = torch.randn(param.shape, generator=generator).to(param.device, dtype)


def rings_in_16_bits(case, arguments):
    return "momentum_window" in case.kwargs and arguments.get("state_dtype") in (BF16, F16)


def run(case, stored, backend, shapes=SHAPES, steps=2, keep_prob=0.5, device=CPU, **more):
    """Parameters, states, mirrors, changes, metrics and slopes after some steps."""
    dtype, grad_dtype, arguments = stored
    arguments = {**arguments, **more}
    mirror = arguments.pop("mirror", None)
    params = make_params(shapes, dtype, devices=[device] * len(shapes))
    optimizer = case.make(params, keep_prob=keep_prob, backend=backend, **arguments)
    outs = [torch.full(param.shape, torch.nan, dtype=mirror, device=device) for param in params] if mirror else []
    for param, out in zip(params, outs, strict=False):
        optimizer.mirror(param, out)
    told = []
    for step in range(steps):
        set_grads(params, grad_dtype, step)
        slopes: dict[torch.device, torch.Tensor] = {}
        if optimizer.track_metrics:
            with optimizer.add_slopes_to(slopes):
                optimizer.step()
            told += [*slopes.values(), *optimizer.metrics().values()]
        else:
            optimizer.step()
    changes = optimizer.pop_changes().values() if optimizer.track_changes else ()
    packed = [tensor for change in changes for tensor in (change.bitmap, change.values)]
    return [*everything(optimizer), *outs, *told, *packed]


@by_storage
@by_case
def test_native_equals_reference(case, stored, isa):
    assert_same_bits(run(case, stored, "native"), run(case, stored, "reference"))


@by_storage
@pytest.mark.parametrize("case", RICH[1:2], ids=lambda c: c.name)
def test_layouts_and_sums(case, stored):
    for options in ({"track_metrics": True}, {"centralize": True}, {"max_norm": 0.3}, {"keep_prob": 1.0}):
        results = [run(case, stored, backend, [*SHAPES, *LAYOUTS], **options) for backend in ("native", "reference")]
        assert_same_bits(*results)


@by_storage
@pytest.mark.parametrize("case", RICH[1:2], ids=lambda c: c.name)
def test_layouts_and_sums_of_cuda_on_host(case, stored, on_host):
    shapes = [*SHAPES, *LAYOUTS, TensorCase((2, 8, 9, 9), channels_last, channels_last)]
    for options in ({"track_metrics": True}, {"centralize": True}, {"max_norm": 0.3}):
        assert_same_bits(*(run(case, stored, backend, shapes, **options) for backend in ("native", "reference")))


@by_storage
@pytest.mark.parametrize("index_map", [IndexMap(7, 100, 300), IndexMap(3 * TILE, 10**6, 10**6)])
def test_shards_draw_as_the_whole(stored, index_map, monkeypatch):
    def sharded(backend):
        from lrtricks_fused.optim import base

        plain = base.MaskedOptimizer._call

        def call(self, *args):
            made = plain(self, *args)
            made.index_maps = [None, index_map]
            return made

        with monkeypatch.context() as patch:
            patch.setattr(base.MaskedOptimizer, "_call", call)
            return run(RICH[1], stored, backend, [TensorCase((65,)), TensorCase((1300,))])

    assert_same_bits(sharded("native"), sharded("reference"))


def test_thread_count_changes_nothing(threads):
    stored = STORED["stochastic bf16 and states"]
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(RICH[1], stored, "native", [TensorCase((300_001,)), *LAYOUTS], track_metrics=True))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@by_storage
@both_backends
def test_a_skipped_step_changes_nothing(stored, backend):
    dtype, grad_dtype, arguments = stored
    arguments = dict(arguments)
    mirror = arguments.pop("mirror", None)
    params = make_params(SHAPES, dtype)
    optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend, **arguments)
    outs = [torch.zeros(param.shape, dtype=mirror) for param in params] if mirror else []
    for param, out in zip(params, outs, strict=False):
        optimizer.mirror(param, out)
    for step in range(2):
        set_grads(params, grad_dtype, step)
        optimizer.found_inf = torch.tensor(float(step))
        before = [tensor.clone() for tensor in (*everything(optimizer), *outs)] if step else None
        optimizer.step()
    assert_same_bits([*everything(optimizer), *outs], before)


@both_backends
@pytest.mark.parametrize("keep_prob", [0.5, 1.0])
@by_case
def test_a_split_master_trains_as_fp32(case, keep_prob, backend):
    whole = make_params(SHAPES, F32)
    halves = [param.detach().to(BF16).requires_grad_() for param in whole]
    with torch.no_grad():
        for param, half in zip(whole, halves, strict=True):
            param.copy_(half)
    theirs = case.make(whole, keep_prob=keep_prob, backend=backend)
    ours = case.make(halves, keep_prob=keep_prob, backend=backend, master="split")
    for step in range(4):
        set_grads(halves, BF16, step)
        set_grads(whole, BF16, step)
        theirs.step()
        ours.step()
        assert_same_bits([ours.master(half) for half in halves], [param.detach() for param in whole])
    for half, param in zip(halves, whole, strict=True):
        assert half.numel() == 0 or (half.float() - param).abs().max() <= param.abs().max() * 2**-8  # half an ulp


@both_backends
def test_offload_is_training_of_fp32_masters(backend):
    masters, plain = make_params(SHAPES, F32), make_params(SHAPES, F32)
    ours = lrt.AdamW(masters, keep_prob=0.5, backend=backend)
    theirs = lrt.AdamW(plain, keep_prob=0.5, backend=backend)
    outs = [torch.empty(param.shape, dtype=BF16) for param in masters]
    for param, out in zip(masters, outs, strict=True):
        ours.mirror(param, out)
    for step in range(3):
        set_grads(masters, BF16, step)
        set_grads(plain, BF16, step)
        for param in plain:
            grad, param.grad, param.grad_dtype = param.grad.float(), None, F32
            param.grad = grad
        ours.step()
        theirs.step()
        assert_same_bits([p.detach() for p in masters], [p.detach() for p in plain])
        assert_same_bits(outs, [param.detach().to(BF16) for param in plain])


@both_backends
def test_a_dropped_elements_mirror_is_left_alone(backend):
    param = torch.randn(2000, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimizer = lrt.SGD([param], lr=0.1, keep_prob=0.5, backend=backend)
    out = torch.empty(2000, dtype=BF16)
    optimizer.mirror(param, out)
    out.fill_(7.0)
    param.grad = torch.ones(2000)
    optimizer.step()
    mask = optimizer.keep_mask(param, 1)
    assert torch.equal(out[~mask], torch.full_like(out[~mask], 7.0))
    assert torch.equal(out[mask], param.detach()[mask].to(BF16))


def test_mixed_lists_are_stepped_each_in_its_way():
    def mixed(backend):
        params = [*make_params(SHAPES, F32), *make_params(SHAPES, BF16)]
        optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend, master="split", track_changes=True)
        optimizer.mirror(params[3], torch.empty(params[3].shape, dtype=F16))
        for step in range(2):
            set_grads(params[:5], F32 if step else BF16, step)
            set_grads(params[5:], BF16, step)
            optimizer.step()
        return [*everything(optimizer), *(change.bitmap for change in optimizer.pop_changes().values())]

    assert_same_bits(mixed("native"), mixed("reference"))


def test_parameters_that_share_memory_are_stepped_in_turn():
    def shared(backend):
        memory = torch.ones(700, dtype=BF16)
        params = [memory[:400].requires_grad_(), memory.detach()[200:].requires_grad_()]
        optimizer = lrt.SGD(params, lr=0.01, keep_prob=0.5, backend=backend, rounding="stochastic")
        for step in range(2):
            set_grads(params, BF16, step)
            optimizer.step()
        return [memory.detach()]

    assert_same_bits(shared("native"), shared("reference"))


def test_every_pair_of_storage_types_is_tried():
    tried = {(dtype, grad) for dtype, grad, _ in STORED.values()}
    assert tried == {*itertools.product((F32,), (F32, BF16, F16)), *itertools.product((BF16,), (BF16, F32)),
                     (F16, F32), (F16, F16)}  # fmt: skip
