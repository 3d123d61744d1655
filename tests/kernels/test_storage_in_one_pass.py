"""What is stored otherwise than it is stepped, in one pass of the CUDA text on the host: the reference's bits.

Where a call would be staged instead, these tests fail, but for those that say so. LRTRICKS_FULL=1 (``make test-all``)
takes every kind of storage at every end and alignment, else a few of them.
"""

import pytest
import test_storage
import torch
from helpers import assert_same_bits, everything
from inventory import FULL, RICH
from tensors import GUARD, TensorCase, channels_last, guards_of, make_params, shifted
from test_cuda_alignments import ACCESS, TILES_AND_REST, operands
from test_storage import BF16, F16, F32, STORED, by_case, by_storage, run, set_grads

import lrtricks_fused as lrt
from lrtricks_fused.step import device
from lrtricks_fused.step.keep import TILE, IndexMap
from lrtricks_fused.step.table import BESIDE, CHUNK, GRAD, MIRROR, MIRROR_DTYPE

ADAM = RICH[1]
GUARD_BYTE = 0xA5
FEW = ["offload", "split, fp32 gradients, bf16 states", "stochastic fp16"]  # each type and each flag once
some_storage = pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else FEW)])
WHOLE_AND_REST = [TensorCase((n,)) for n in (CHUNK + 65, TILES_AND_REST, 1, 65)]


@pytest.fixture
def staged(monkeypatch):
    """The calls that are staged."""
    calls = []
    step_staged = device.step_staged

    def note(call, step):
        calls.append(call)
        step_staged(call, step)

    monkeypatch.setattr(device, "step_staged", note)
    return calls


@pytest.fixture
def one_pass(on_host, staged):
    """The native backend is the CUDA text, and stages no call."""
    yield
    assert not staged


def both(*args, **options):
    assert_same_bits(*(run(*args[:2], backend, *args[2:], **options) for backend in ("native", "reference")))


@by_storage
@by_case
def test_every_rule(case, stored, on_host, staged):
    ring = "momentum_window" in case.kwargs
    both(case, stored)
    assert bool(staged) == ring


@by_storage
@pytest.mark.parametrize("options", [{"keep_prob": 0.0}, {"keep_prob": 1.0}, {"max_norm": 0.3}], ids=str)
def test_masks_and_norms(stored, options, one_pass):
    both(ADAM, stored, WHOLE_AND_REST, **options)


@pytest.mark.parametrize("first_map", [IndexMap(7, 100, 300), IndexMap(TILE, 10**6, 0)], ids=str)
@by_storage
def test_shards(stored, first_map, one_pass, monkeypatch):
    from lrtricks_fused.optim import base

    plain = base.MaskedOptimizer._call

    def call(self, *args):
        made = plain(self, *args)
        made.index_maps = [None, first_map, IndexMap(3 * TILE, 10**6, 10**6)]
        return made

    monkeypatch.setattr(base.MaskedOptimizer, "_call", call)
    both(ADAM, stored, [TensorCase((65,)), TensorCase((1300,)), TensorCase((TILE + 9,))])


@by_storage
def test_channels_last_but_for_bitmaps(stored, on_host, staged, monkeypatch):
    def set_grads_alike(params, dtype, step):
        set_grads(params, dtype, step)
        for param in params:
            param.grad = torch.empty_like(param, dtype=dtype).copy_(param.grad)

    monkeypatch.setattr(test_storage, "set_grads", set_grads_alike)
    both(ADAM, stored, [TensorCase((2, 8, 9, 9), channels_last, channels_last), TensorCase((65,))])
    assert bool(staged) == ("track_changes" in stored[2] or "mirror" in stored[2])  # mirrors here are contiguous


def test_what_is_staged(on_host, staged):
    for options in ({"track_metrics": True}, {"centralize": True}):
        staged.clear()
        both(ADAM, STORED["offload"], **options)
        assert staged


def of_several_types(backend, max_norm):
    """What three steps make of parameters whose gradients are of three types, one of which has a mirror."""
    params = make_params([TensorCase((n,)) for n in (700, 65, 1300)], F32)
    optimizer = ADAM.make(params, keep_prob=0.5, backend=backend, track_changes=True, max_norm=max_norm)
    optimizer.mirror(params[0], torch.empty(700, dtype=F16))
    for step, dtypes in enumerate([(F32, BF16, F16), (F32, BF16, F16), (F16, F32, F32)]):
        for param, dtype in zip(params, dtypes, strict=True):
            set_grads([param], dtype, step)
        optimizer.step()
    return [*everything(optimizer), *(change.bitmap for change in optimizer.pop_changes().values())]


@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_gradients_and_mirrors_of_several_types(max_norm, one_pass):
    assert_same_bits(*(of_several_types(backend, max_norm) for backend in ("native", "reference")))


def test_a_skipped_step_changes_nothing(one_pass):
    params = make_params(WHOLE_AND_REST, F32)
    optimizer = lrt.Adam(params, keep_prob=0.5, backend="native", track_changes=True, state_dtype=BF16)
    outs = [torch.zeros(param.shape, dtype=F16) for param in params]
    for step in range(2):
        set_grads(params, BF16, step)
        for param, out in zip(params, outs, strict=True):
            optimizer.mirror(param, out)
        optimizer.found_inf = torch.tensor(float(step))
        kept = [*everything(optimizer), *outs, *(optimizer._bitmap(param) for param in params)]
        before = [tensor.clone() for tensor in kept]
        optimizer.step()
    assert_same_bits(kept, before)


def beside(optimizer, param):
    """What lies beside a parameter and its states, by name."""
    return {"mirror": optimizer._mirrors.get(param), "changes": optimizer._changes.get(param)}


def shifted_bytes(values, count):
    """As tensors.shifted."""
    buffer = torch.full((len(values) + count + 1,), GUARD_BYTE, dtype=torch.uint8)
    return buffer[count:-1].copy_(values)


def shift(optimizer, param, name, offset):
    """Moves one operand of the parameter off its alignment."""
    all_operands = {**operands(optimizer, param), **beside(optimizer, param)}
    moved = shifted_bytes(all_operands[name], offset) if name == "changes" else shifted(all_operands[name], offset)
    if name == "param":
        param.data = moved
    elif name == "grad":
        param.grad = moved
    elif name in ("mirror", "changes"):
        {"mirror": optimizer._mirrors, "changes": optimizer._changes}[name][param] = moved
    else:
        optimizer.state[param][name] = moved
    return moved


def stepped(stored, backend, sizes, before_second=lambda optimizer, params: None):
    """All that two steps have made."""
    dtype, grad_dtype, arguments = stored
    arguments = {**arguments}
    mirror = arguments.pop("mirror", None)
    params = make_params([TensorCase((size,)) for size in sizes], dtype)
    optimizer = lrt.Adam(params, amsgrad=True, weight_decay=0.1, keep_prob=0.5, backend=backend, **arguments)
    for param in params if mirror else ():
        optimizer.mirror(param, torch.empty(param.shape, dtype=mirror))
    for step in range(2):
        set_grads(params, grad_dtype, step)
        if step:
            before_second(optimizer, params)
        optimizer.step()
    stored_beside = [t for param in params for t in beside(optimizer, param).values() if t is not None]
    return [*everything(optimizer), *stored_beside]


@some_storage
def test_every_alignment_of_every_operand(stored, one_pass):
    moved = []

    def shift_all(optimizer, params):
        moves = [
            (name, offset)
            for name, tensor in {**operands(optimizer, params[0]), **beside(optimizer, params[0])}.items()
            if tensor is not None
            for offset in range(1, ACCESS // tensor.element_size())
        ]
        moved.extend(shift(optimizer, param, *move) for param, move in zip(params[-len(moves) :], moves, strict=True))

    results = [stepped(stored, backend, [TILES_AND_REST] * 60, shift_all) for backend in ("native", "reference")]
    assert len(moved) > 10
    for tensor in moved:
        guard = GUARD_BYTE if tensor.dtype == torch.uint8 else GUARD
        assert tensor.data_ptr() % ACCESS and (guards_of(tensor) == guard).all()
    assert_same_bits(*results)


@pytest.mark.parametrize("stored", [STORED[name] for name in (STORED if FULL else FEW[1:2])])
def test_every_end(stored, one_pass):
    sizes = range(1, 1101, 1 if FULL else 3)
    assert_same_bits(*(stepped(stored, backend, sizes) for backend in ("native", "reference")))


def test_a_table_of_what_is_stored_otherwise_is_kept(one_pass):
    params = make_params([TensorCase((700,)), TensorCase((65,))], F32)
    optimizer = lrt.Adam(params, keep_prob=0.5, backend="native", track_changes=True)
    outs = [torch.empty(700, dtype=F16), torch.empty(65, dtype=BF16)]
    for param, out in zip(params, outs, strict=True):
        optimizer.mirror(param, out)

    def step(number):
        set_grads(params, BF16, number)
        optimizer.step()
        (table,) = optimizer._tables.values()
        return table

    step(0)
    table = step(1)
    assert step(2) is table
    rows = table.rows
    addresses = [[t.data_ptr() for t in column] for column in ([p.grad for p in params], outs)]
    assert [rows[:, GRAD].tolist(), rows[:, MIRROR].tolist()] == addresses
    changes = [optimizer._bitmap(param).data_ptr() for param in params]
    assert rows[:, MIRROR + BESIDE.index("changes")].tolist() == changes
    assert rows[:, MIRROR + BESIDE.index("lows")].tolist() == [0, 0]
    assert rows[0, MIRROR_DTYPE] != rows[1, MIRROR_DTYPE]
    optimizer.mirror(params[1], torch.empty(65, dtype=BF16))
    assert step(3) is not table
