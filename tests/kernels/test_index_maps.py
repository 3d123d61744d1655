"""Shards draw the bits of the whole parameter's elements that they hold (lrtricks_fused.step.keep.IndexMap).

Triton's interpreter takes seconds for all rules in a dtype: by default it runs three in two, with LRTRICKS_FULL=1
(``make test-all``) all.
"""

import itertools

import numpy
import philox_numpy
import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything
from inventory import DTYPES, FULL, INTERPRETED, ISAS, RICH, SEED
from tensors import TensorCase, channels_last, contiguous, gapped, make_params, set_grads, transposed, unaligned
from test_native_equals_reference import _cache_masks  # noqa: F401 (a fixture that holds here, too)
from test_ops import sample, tensors_of
from triton_worker import interpreted

import lrtricks_fused as lrt
from lrtricks_fused.step import keep
from lrtricks_fused.step.keep import IndexMap
from lrtricks_fused.step.table import CHUNK

ADAM = next(case for case in RICH if case.ours is lrt.Adam)
AVERAGE = next(case for case in RICH if "momentum_window" in case.name)

CPU = torch.device("cpu")
MAPS = [
    IndexMap(0, 1, 1), IndexMap(0, 2**17, 0), IndexMap(512, 2**17, 0), IndexMap(1, 2**17, 0), IndexMap(511, 2**40, 0),
    IndexMap(3, 1, 2), IndexMap(5, 7, 11), IndexMap(0, 63, 64), IndexMap(64, 64, 128), IndexMap(9, 65, 1000),
    IndexMap(513, 513, 513), IndexMap(4096, 512, 5120), IndexMap(2**32 * 8 - 700, 1100, 2**33),
    IndexMap(2**59 - 2**17, 2**17, 0), IndexMap(8, 8, 24), IndexMap(2**35 - 1024, 2**17, 0), IndexMap(8, 8, 64),
    IndexMap(512, 1024, 4096), IndexMap(0, 4, 33), IndexMap(24, 40, 320),
]  # fmt: skip
INVALID = [
    (IndexMap(-1, 5, 5), "base >= 0"), (IndexMap(0, 0, 5), "run >= 1"), (IndexMap(0, -3, 5), "run >= 1"),
    (IndexMap(0, 5, 4), "pitch >= run"), (IndexMap(0, 99, -1), "pitch >= run"),
    (IndexMap(2**59 - 99, 100, 0), "below element"), (IndexMap(0, 1, 2**53), "below element"),
    (IndexMap(2**63, 100, 0), "below element"),
]  # fmt: skip


@pytest.mark.parametrize("index_map", MAPS, ids=str)
@pytest.mark.parametrize("numel", [0, 1, 1500])
def test_bits_are_those_of_the_elements(index_map, numel):
    elements = [index_map.base + i // index_map.run * index_map.pitch + i % index_map.run for i in range(numel)]
    wanted = philox_numpy.keep_bits(elements, 77, 7, 3).astype(numpy.int64)
    assert torch.equal(keep.keep_bits(numel, 77, 7, 3, index_map=index_map), torch.from_numpy(wanted))
    mask = keep.keep_mask(torch.Size([numel]), 0.5, 77, 7, 3, index_map=index_map)
    assert torch.equal(mask, torch.from_numpy(wanted) < 32768)


@pytest.mark.parametrize(("index_map", "text"), INVALID, ids=str)
def test_what_is_no_map_has_no_bits(index_map, text):
    with pytest.raises(ValueError, match=f"Invalid index map .* of 100 elements: must .*{text}"):
        keep.keep_bits(100, 0, 1, 0, index_map=index_map)


SHAPES = [
    TensorCase((1300,)), TensorCase((0,)), TensorCase((20, 128)), TensorCase(()), TensorCase((3, 5, 7)),
    TensorCase((CHUNK + 577,)), TensorCase((33, 65), transposed, contiguous), TensorCase((40, 30), gapped, gapped),
    TensorCase((1300,), unaligned, unaligned), TensorCase((513,)), TensorCase((2, 8, 9, 9)), TensorCase((64, 33)),
]  # fmt: skip
CONTIGUOUS = [case for case in SHAPES if case.param in (contiguous, unaligned)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
by_case = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)


def give_maps(optimizer, index_maps):
    """Makes an optimizer's parameters shards of these maps, in the order of its parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    map_of, calls = dict(zip(map(id, params), index_maps, strict=True)), optimizer._calls

    def with_maps(*args):
        for call in calls(*args):
            call.index_maps = [map_of[id(param)] for param in call.params]
            yield call

    optimizer._calls = with_maps


def run(case, dtype, backend, shapes=SHAPES, first=0, steps=2, keep_prob=0.5, maps=None, device=CPU, **arguments):
    """All parameters, their states and slopes after some steps; each parameter has a map of MAPS, the last is whole."""
    params = make_params(shapes, dtype.dtype, devices=[device] * len(shapes))
    optimizer = case.make(params, keep_prob=keep_prob, grad_weight=0.7, seed=SEED, backend=backend,
                          state_dtype=dtype.state_dtype, **arguments)  # fmt: skip
    give_maps(optimizer, maps or [*(MAPS[(first + i) % len(MAPS)] for i in range(len(shapes) - 1)), None])
    slopes = {}
    for n in range(steps):
        set_grads(params, shapes, n)
        if n % 2 == 0:
            optimizer.step()
        else:
            with optimizer.add_slopes_to(slopes):
                optimizer.step()
    return [*everything(optimizer), *slopes.values()]


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@by_dtype
@by_case
def test_native_equals_reference(case, dtype, isa):
    for first in (0, 6):
        assert_same_bits(*(run(case, dtype, backend, first=first) for backend in ("native", "reference")))


@pytest.mark.parametrize("first", range(len(MAPS)))
def test_every_map_meets_every_layout(first):
    for dtype in DTYPES[:2]:
        for case in (ADAM, AVERAGE):
            assert_same_bits(*(run(case, dtype, backend, first=first) for backend in ("native", "reference")))


@by_dtype
@by_case
def test_native_on_a_table_equals_reference(case, dtype):
    results = [run(case, dtype, backend, CONTIGUOUS) for backend in ("native", "reference")]
    assert_same_bits(*results)


# Shards whose tiles follow each other: kernels without maps draw for them. The last but one's calls cross 2**32.
FOLLOWING = [IndexMap(512, 2**17, 0), None, IndexMap(2**35 + 8192, 2**14, 2**15), IndexMap(1536, 9000, 0)]
CROSSING = IndexMap(2**35 - 8704, 2**17, 0)
LENGTHS = [TensorCase((n,)) for n in (CHUNK + 577, 1300, 2 * CHUNK, 8192 + 512)]


def is_mapped(maps):
    params = make_params(LENGTHS[: len(maps)], torch.float32)
    optimizer = lrt.Adam(params, keep_prob=0.5, backend="native")
    set_grads(params, LENGTHS[: len(maps)], 0)
    give_maps(optimizer, maps)
    optimizer.step()
    (own,) = optimizer._tables.values()
    return own.is_mapped


def test_which_lists_need_maps():
    assert not is_mapped(FOLLOWING)
    for other in (CROSSING, IndexMap(511, 2**17, 0), IndexMap(0, 512, 1024), IndexMap(0, CHUNK + 576, 2**14)):
        assert is_mapped([other, *FOLLOWING[1:]])
    assert not is_mapped([IndexMap(2**35 - 8192, 2**17, 0), *FOLLOWING[1:]])


@by_dtype
@pytest.mark.parametrize("first", [FOLLOWING[0], CROSSING, IndexMap(2**35 - 8192, 2**17, 0)], ids=str)
def test_cuda_kernels_of_tiles_that_follow(first, dtype, on_host):
    maps = [first, *FOLLOWING[1:]]
    results = [run(ADAM, dtype, backend, LENGTHS, maps=maps) for backend in ("native", "reference")]
    assert_same_bits(*results)


@interpreted
@pytest.mark.parametrize("first", [FOLLOWING[0], CROSSING, IndexMap(2**35 - 8192, 2**17, 0)], ids=str)
def test_triton_kernels_of_tiles_that_follow(first):
    results = [
        run(ADAM, DTYPES[0], backend, LENGTHS, maps=[first, *FOLLOWING[1:]]) for backend in ("triton", "reference")
    ]
    assert_same_bits(*results)


@by_dtype
@by_case
def test_cuda_kernels_equal_reference(case, dtype, on_host):
    for first in (0, 6):
        assert_same_bits(*(run(case, dtype, backend, CONTIGUOUS, first) for backend in ("native", "reference")))


@pytest.mark.parametrize("first", range(len(MAPS)))
def test_cuda_kernels_at_every_map(first, on_host):
    assert_same_bits(*(run(ADAM, DTYPES[0], backend, CONTIGUOUS, first) for backend in ("native", "reference")))


# The interpreter takes a tenth of a second for a chunk.
FEW = [TensorCase((CHUNK + 577,)), TensorCase((20, 35), unaligned, unaligned), TensorCase((0,)), TensorCase((33,))]


@pytest.mark.parametrize("dtype", INTERPRETED, ids=lambda d: d.name)
@pytest.mark.parametrize("case", RICH if FULL else RICH[::4], ids=lambda c: c.name)  # SGD's two ways, and RAdam
@interpreted
def test_triton_kernels_equal_reference(case, dtype):
    for first in (5, 6):
        assert_same_bits(*(run(case, dtype, backend, FEW, first) for backend in ("triton", "reference")))


@pytest.mark.parametrize("first", range(len(MAPS)))
@interpreted
def test_triton_kernels_at_every_map(first):
    assert_same_bits(*(run(ADAM, DTYPES[0], backend, FEW, first, 1) for backend in ("triton", "reference")))


def check_centralized(backend, shapes):
    for case, first in itertools.product((ADAM, AVERAGE), (0, 5)):
        assert_same_bits(*(run(case, DTYPES[1], b, shapes, first, centralize=True) for b in (backend, "reference")))


def check_unmasked(backend, shapes):
    for keep_prob in (0.0, 1.0):
        wanted = run(ADAM, DTYPES[0], "reference", shapes, keep_prob=keep_prob, maps=[None] * len(shapes))
        assert_same_bits(run(ADAM, DTYPES[0], backend, shapes, keep_prob=keep_prob), wanted)


@pytest.mark.parametrize("check", [check_centralized, check_unmasked])
def test_native_centralized_and_unmasked(check):
    check("native", SHAPES)


@pytest.mark.parametrize("check", [check_centralized, check_unmasked])
def test_cuda_kernels_centralized_and_unmasked(check, on_host):
    check("native", CONTIGUOUS)


@pytest.mark.parametrize("check", [check_centralized, check_unmasked])
@interpreted
def test_triton_kernels_centralized_and_unmasked(check):
    check("triton", FEW)


def test_channels_last_of_a_table_and_of_lists():
    sizes = [(7, 3, 5, 5), (40, 64, 3, 3), (2, 2048, 4, 4)]
    alike = [TensorCase(size, channels_last, channels_last) for size in sizes]
    for shapes in (alike, [*alike, TensorCase((33, 65), transposed, contiguous)]):
        for first in range(0, 14, 2):
            for steps in (1, 2):  # the second has a slope, and goes by indices
                results = [run(ADAM, DTYPES[0], b, shapes, first, steps) for b in ("native", "reference")]
                assert_same_bits(*results)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda d: d.name)
def test_thread_count_changes_nothing(dtype, threads):
    shapes = [TensorCase((150_000,)), TensorCase((300, 301), transposed, contiguous), TensorCase((100_000,))]
    maps = [IndexMap(77, 130_001, 2**33), IndexMap(1, 301, 1000), IndexMap(5, 3, 8)]
    expected = run(ADAM, dtype, "reference", shapes, maps=maps)
    for count in (1, 2, 3):
        threads(count)
        assert_same_bits(run(ADAM, dtype, "native", shapes, maps=maps), expected)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda d: d.name)
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
def test_shards_stepped_apart_equal_the_whole(case, dtype):
    random = numpy.random.default_rng(len(case.name) + len(dtype.name))
    for _ in range(4):
        shape = (int(random.integers(1, 40)), int(random.integers(1, 90)))
        dim = int(random.integers(2))
        cuts = sorted({0, shape[dim], *(int(random.integers(shape[dim] + 1)) for _ in range(3))})
        wanted = shards_of(case, dtype, shape, 0, [0, shape[0]])
        got = shards_of(case, dtype, shape, dim, cuts)
        for whole, *parts in zip(wanted[0], *got, strict=True):
            joined = whole if whole.dim() == 0 else torch.cat(parts, whole.dim() - 2 + dim)
            assert_same_bits([joined], [whole])
            assert all(torch.equal(part, whole) for part in parts if whole.dim() == 0)


def shards_of(case, dtype, shape, dim, cuts):
    """Parameter and states of the parts between the cuts, each stepped by an optimizer of its own."""
    parts = []
    for begin, end in itertools.pairwise(cuts):
        (whole,) = make_params([TensorCase(shape)], dtype.dtype)
        param = whole.detach().narrow(dim, begin, end - begin).clone().requires_grad_()
        optimizer = case.make([param], keep_prob=0.5, seed=SEED, state_dtype=dtype.state_dtype, backend="native")
        first, run_length = (begin * shape[1], param.numel()) if dim == 0 else (begin, end - begin)
        give_maps(optimizer, [IndexMap(first, run_length, shape[1])])
        for n in range(3):
            set_grads([whole], [TensorCase(shape)], n)
            param.grad = whole.grad.narrow(dim, begin, end - begin).clone()
            optimizer.step()
        parts.append(everything(optimizer))
    return parts


def test_a_table_follows_its_maps():
    results = []
    for backend in ("native", "reference"):
        params = make_params(CONTIGUOUS, torch.float32)
        optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend)
        for step in range(6):
            set_grads(params, CONTIGUOUS, step)
            if step % 2:
                give_maps(optimizer, [MAPS[(i + step) % len(MAPS)] if i % 3 else None for i in range(len(params))])
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize(("index_map", "text"), INVALID, ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_invalid_map_is_refused_before_anything_is_touched(index_map, text, backend):
    params = make_params([TensorCase((100,)), TensorCase((100,))], torch.float32)
    optimizer = lrt.Adam([{"params": params[:1]}, {"params": params[1:]}], keep_prob=0.5, backend=backend)
    set_grads(params, [TensorCase((100,)), TensorCase((100,))], 0)
    optimizer.step()
    give_maps(optimizer, [MAPS[2], index_map])
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=f"Invalid index map .* of 100 elements: must .*{text}"):
        optimizer.step()
    before.assert_unchanged()


# Too few and too many integers; what is no map, as far as 64 bits can say it; a whole parameter elsewhere.
REFUSED = [[0, 1], [0, 0, 0] * 3, *([*index_map, 0, 0, 0] for index_map, _ in INVALID[1:-1] if index_map.run),
           [0, 0, 0, 1, 0, 0], [0, 1, 2**62, 0, 0, 0], [2**62, 2**62, 0, 0, 0, 0]]  # fmt: skip


@pytest.mark.parametrize("index_maps", REFUSED, ids=str)
def test_ops_refuse_what_is_no_map(index_maps):
    args, kwargs = sample("adam_", ((100,), (10, 10)))
    before = [tensor.clone() for tensor in tensors_of(args)]
    with pytest.raises(RuntimeError, match="Invalid index_maps"):
        torch.ops.lrtricks_fused.adam_(*args, False, None, index_maps, **kwargs)
    assert_same_bits(tensors_of(args), before)
