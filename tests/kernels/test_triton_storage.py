"""What is stored otherwise than it is stepped, by the Triton kernels: the bits of the reference.

Where a call would be staged instead of stepped in one pass, these tests fail, but for those that say so. By default a
few rules and kinds of storage; with LRTRICKS_FULL=1 (``make test-all``) all.
"""

import pytest
import repeat_events
import test_storage
import torch
from helpers import assert_same_bits, everything
from inventory import DTYPES, FULL, RICH
from tensors import GUARD, TensorCase, channels_last, guards_of, make_params
from test_cuda_alignments import operands
from test_metrics import run as run_metrics
from test_storage import BF16, F16, F32, SHAPES, STORED, by_storage, run, set_grads
from test_storage_in_one_pass import FEW, GUARD_BYTE, beside, of_several_types, shift, stepped
from triton_worker import interpreted

import lrtricks_fused as lrt
from lrtricks_fused.optim import base
from lrtricks_fused.step import device
from lrtricks_fused.step.keep import TILE, IndexMap
from lrtricks_fused.step.table import CHUNK

ADAM = RICH[1]
CHUNK_AND_REST = [TensorCase((n,)) for n in (CHUNK + TILE + 65, 0, 1, 130)]
BACKENDS = ("triton", "reference")
some_storage = pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else FEW)])


class Staged(pytest.MonkeyPatch):
    """Notes the calls that are staged; without ``expected`` there must be none."""

    def __init__(self, expected: bool = False) -> None:
        super().__init__()
        self.expected, self.calls = expected, []

    def __enter__(self):
        step_staged = device.step_staged
        self.setattr(device, "step_staged", lambda call, step: self.calls.append(call) or step_staged(call, step))
        return self

    def __exit__(self, kind, *_):
        self.undo()
        assert kind is not None or bool(self.calls) == self.expected


def both(*args, **options):
    assert_same_bits(*(run(*args[:2], backend, *args[2:], **options) for backend in BACKENDS))


@by_storage
@pytest.mark.parametrize("case", RICH if FULL else [ADAM], ids=lambda c: c.name)
@interpreted
def test_every_rule(case, stored):
    with Staged("momentum_window" in case.kwargs):
        both(case, stored, CHUNK_AND_REST)


@pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else ["fp16 mirror", *FEW[1:]])])
@interpreted
def test_masks_and_norms(stored):
    with Staged():
        for options in ({"keep_prob": 0.0}, {"keep_prob": 2.0**-16}, {"keep_prob": 1.0, "max_norm": 0.3}):
            both(ADAM, stored, CHUNK_AND_REST[1:], **options)


def check_shards(stored, first_map):
    plain = base.MaskedOptimizer._call

    def call(self, *args):
        made = plain(self, *args)
        made.index_maps = [None, first_map, IndexMap(3 * TILE, 10**6, 10**6)]
        return made

    with Staged() as patch:
        patch.setattr(base.MaskedOptimizer, "_call", call)
        both(ADAM, stored, [TensorCase((65,)), TensorCase((1300,)), TensorCase((TILE + 9,))], steps=1)


@some_storage
@interpreted
def test_shards(stored):
    check_shards(stored, IndexMap(7, 100, 300))


@pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else FEW[:2])])
@interpreted
def test_shards_whose_tiles_follow(stored):
    check_shards(stored, IndexMap(TILE, 10**6, 0))


@pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else FEW[:2])])
@interpreted
def test_channels_last_but_for_bitmaps(stored):
    def set_grads_alike(params, dtype, step):
        set_grads(params, dtype, step)
        for param in params:
            param.grad = torch.empty_like(param, dtype=dtype).copy_(param.grad)

    with Staged("track_changes" in stored[2] or "mirror" in stored[2]) as patch:  # mirrors here are contiguous
        patch.setattr(test_storage, "set_grads", set_grads_alike)
        both(ADAM, stored, [TensorCase((2, 8, 9, 9), channels_last, channels_last), TensorCase((65,))])


@some_storage
@interpreted
def test_metrics_and_slopes_are_staged(stored):
    with Staged(True):
        both(ADAM, stored, SHAPES[1:], max_norm=0.3, track_metrics=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@interpreted
def test_metrics_equal_the_reference(dtype):
    for case in (ADAM, RICH[-1]):
        assert_same_bits(*(run_metrics(case, dtype, backend, SHAPES[1:]) for backend in BACKENDS))


@pytest.mark.parametrize("max_norm", [None, 0.3])
@interpreted
def test_gradients_and_mirrors_of_several_types(max_norm):
    with Staged():
        assert_same_bits(*(of_several_types(backend, max_norm) for backend in BACKENDS))


@pytest.mark.parametrize("make", [repeat_events.optimizer, repeat_events.in_sixteen_bits])
@interpreted
def test_clipped_steps_are_repeated(make):
    results = []
    options = {} if make is repeat_events.optimizer else dict(track_changes=True, state_dtype=BF16)
    for backend in ("triton", "reference"):
        optimizer = make(backend, max_norm=0.5, **options)
        for event in [repeat_events.new_gradients, repeat_events.scheduled] * 3:
            event(optimizer)
            optimizer.step()
        results.append([optimizer.grad_norm, *repeat_events.contents(optimizer), *repeat_events.beside(optimizer)])
        assert (optimizer._repeats._record is None) == (backend == "reference")
    assert_same_bits(*results)


@interpreted
def test_a_skipped_step_changes_nothing():
    params = make_params(CHUNK_AND_REST, F32)
    optimizer = lrt.Adam(params, keep_prob=0.5, backend="triton", track_changes=True, state_dtype=BF16)
    outs = [torch.zeros(param.shape, dtype=F16) for param in params]
    with Staged():
        for step in range(2):
            set_grads(params, BF16, step)
            for param, out in zip(params, outs, strict=True):
                optimizer.mirror(param, out)
            optimizer.found_inf = torch.tensor(float(step))
            kept = [*everything(optimizer), *outs, *(optimizer._bitmap(param) for param in params)]
            before = [tensor.clone() for tensor in kept]
            optimizer.step()
    assert_same_bits(kept, before)


@some_storage
@interpreted
def test_every_operand_off_its_alignment(stored):
    moved = []

    def shift_all(optimizer, params):
        names = [
            n for n, t in {**operands(optimizer, params[0]), **beside(optimizer, params[0])}.items() if t is not None
        ]
        moved.extend(shift(optimizer, param, name, 1) for param, name in zip(params, names, strict=False))

    with Staged():
        results = [stepped(stored, backend, [CHUNK + 9] * 8, shift_all) for backend in BACKENDS]
    assert len(moved) > 8
    for tensor in moved:
        guard = GUARD_BYTE if tensor.dtype == torch.uint8 else GUARD
        assert tensor.data_ptr() % 16 and (guards_of(tensor) == guard).all()
    assert_same_bits(*results)


@pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else FEW[:1])])
@interpreted
def test_every_end(stored):
    with Staged():
        sizes = range(1, 1101, 1 if FULL else 157)
        assert_same_bits(*(stepped(stored, backend, sizes) for backend in BACKENDS))


@some_storage
@interpreted
def test_what_is_not_finite(stored):
    def spoil(optimizer, params):
        for param in params:
            param.grad[::7], param.grad[1::7] = torch.inf, torch.nan
            param.data[2::7] = torch.finfo(param.dtype).max

    with Staged():
        results = [stepped(stored, backend, [1300], spoil) for backend in BACKENDS]
    numbers = ~results[1][0].isnan()
    lows = [i for i, tensor in enumerate(results[1]) if tensor.dtype == torch.int16]
    for i in lows:  # of a NaN, the sign and what completes it are any
        results[0][i], results[1][i] = (result[i][numbers] for result in results)
    assert_same_bits(*results)


@interpreted
def test_a_graph_hears_of_a_mirror_that_is_written():
    param, mirror = torch.nn.Parameter(torch.ones(40)), torch.zeros(40, dtype=BF16)
    optimizer = lrt.SGD([param], lr=0.1, backend="triton")
    optimizer.mirror(param, mirror)
    param.grad = torch.ones(40)
    versions = param._version, mirror._version
    optimizer.step()
    assert (param._version, mirror._version) == (versions[0] + 1, versions[1] + 1)
