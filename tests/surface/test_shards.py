"""Parameters that are DTensors step as the whole ones do, on any number of ranks and cut in any way: the same bits."""

import copy
import functools
import itertools
from types import SimpleNamespace

import pytest
import ranks
import sharded
import torch
from helpers import assert_same_bits, everything, leaves, same_bits, train
from inventory import RICH
from sharded import Net, all_of, by_rows, drive, hybrid, only_some, part_of, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import lrtricks_fused as lrt
from lrtricks_fused.optim import cuts, shards

STEPS = 20
F32, BF16 = torch.float32, torch.bfloat16
RUNS = [(case.name, dtype) for case in RICH for dtype in (F32, BF16)]
by_name = {case.name: case for case in RICH}


def make(name, model, **options):
    return by_name[name].make(model.named_parameters(), keep_prob=0.5, seed=3, **options)


@functools.cache
def single(name, dtype, steps=STEPS, **options):
    """What one process makes of the plain model."""
    model = Net(dtype)
    optimizer = make(name, model, **{**options, "backend": "native"})
    drive(model, optimizer, range(steps))
    return all_of(model, optimizer)


WAYS = {
    "rows-1": (by_rows, 1), "rows-2": (by_rows, 2), "rows-3": (by_rows, 3), "rows-4": (by_rows, 4),
    "columns-2": (sharded.by_columns, 2), "hybrid-4": (hybrid, 4),
    "tensors-2": (sharded.in_tensors, 2), "both-4": (sharded.in_both, 4),
    "some-2": (only_some, 2),
}  # fmt: skip


def _same_as_single(_, size, way, runs):
    for name, dtype, options in runs:
        model = Net(dtype)
        WAYS[way][0](model, size)
        optimizer = make(name, model, **options)
        drive(model, optimizer, range(STEPS))
        assert all(
            type(value) is type(param.data)
            for param in model.parameters()
            for n, value in optimizer.state[param].items()
            if n not in ("step", "identity", "mu_product")
        )
        assert_same_bits(all_of(model, optimizer), single(name, dtype, **options))


@pytest.mark.parametrize("way", WAYS)
def test_the_bits_of_the_single_process(way):
    runs = [(name, dtype, {}) for name, dtype in RUNS]
    if way not in ("rows-2", "rows-3"):
        runs = [*runs[::3], (RUNS[0][0], F32, {"backend": "reference"})]
    if "tensors" not in way and "both" not in way and "columns" not in way:
        runs.append((RUNS[2][0], F32, {"centralize": True}))
    ranks.run(_same_as_single, WAYS[way][1], way, runs)


# -- which elements they are -------------------------------------------------------------------------------------------


def numbered(shape, mesh, placements):
    """The whole's element numbers as a DTensor."""
    full = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    return part_of(full, SimpleNamespace(device_mesh=mesh, placements=tuple(placements)))


def _maps(_, size):
    flat, mesh = init_device_mesh("cpu", (size,)), init_device_mesh("cpu", (2, size // 2))
    strided, same = _StridedShard(0, split_factor=2), Replicate()
    for shape, on, placements in [
        *(((n, 3), flat, [Shard(0)]) for n in (8, 7, 3, 2, 1)), ((5,), flat, [Shard(0)]), ((1,), flat, [Shard(0)]),
        ((0, 3), flat, [Shard(0)]), ((3, 8), flat, [Shard(1)]), ((3, 7), flat, [Shard(1)]), ((3, 3), flat, [Shard(1)]),
        ((3, 4, 6), flat, [Shard(2)]), ((3, 5, 4), flat, [Shard(1)]), ((3, 4), flat, [same]), ((), flat, [same]),
        ((8, 6), mesh, [Shard(0), Shard(1)]), ((8, 6), mesh, [Shard(1), Shard(0)]), ((1, 8, 1), flat, [Shard(1)]),
        ((7, 2), mesh, [Shard(0), Shard(0)]), ((1, 6, 4), mesh, [same, Shard(2)]),
        ((4, 6, 5), mesh, [Shard(0), Shard(1)]), ((4, 6, 5), mesh, [Shard(0), Shard(2)]),
        *(((n, 2), mesh, [strided, Shard(0)]) for n in (8, 7, 5, 3)), ((8, 3), mesh, [strided, same]),
        ((3, 8, 2), mesh, [_StridedShard(1, split_factor=2), same]), ((8, 1, 1), mesh, [same, Shard(0)]),
    ]:  # fmt: skip
        tensor = numbered(shape, on, placements)
        held, where = tensor.to_local().flatten(), shards.index_map(tensor)
        whole_numel = torch.Size(shape).numel()
        expected = torch.arange(whole_numel) if where is None else where.elements(held.numel())
        if where is not None:
            where.check(held.numel())
        if held.numel():
            assert torch.equal(held.long(), expected), (shape, placements, where)
        assert same_bits(shards.cut(numbered(shape, on, [same] * on.ndim).to_local(), tensor), tensor.to_local())
    # On all ranks, also on those that hold one row, whose own elements are runs at one distance.
    for shape, placements in [(shape, [Shard(1), Shard(2)]) for shape in ((4, 6, 4), (4, 3, 4), (4, 3, 2))] + [
        ((8, 3), [Partial(), same])
    ]:
        own = numbered(shape, mesh, [place if isinstance(place, Shard) else same for place in placements]).to_local()
        stride = torch.empty(shape, device="meta").stride()
        param = nn.Parameter(DTensor.from_local(own, mesh, placements, shape=torch.Size(shape), stride=stride))
        with pytest.raises(ValueError, match=r"Invalid parameter of shape .* with placements .*(Shard|Partial)"):
            lrt.Adam([param])


def test_maps_are_the_elements_a_rank_holds():
    ranks.run(_maps, 4)


def _each_rank_has_a_map(shape, splits, mesh):
    for coordinate in itertools.product(*map(range, mesh)):
        runs = [[(0, size)] for size in shape]
        for split in splits:
            runs[split.dim] = cuts.of_rank(runs[split.dim], split, coordinate[split.mesh_dim])
        if all(runs) and not 0 < len(cuts._levels(shape, runs)) <= 2:
            return False
    return True


def test_ranks_agree_on_cuts_without_asking_each_other():
    refused = 0
    for mesh in ((2, 2), (4, 3)):
        for shape in itertools.product((1, 2, 5, 7), (1, 3, 10), (1, 4)):
            for dims, chunks in itertools.product(itertools.product(range(3), repeat=2), ((1, 1), (3, 1), (2, 2))):
                splits = tuple(cuts.Split(at, dims[at], mesh[at], chunks[at]) for at in range(2))
                have = _each_rank_has_a_map(shape, splits, mesh)
                assert cuts.all_have_maps(torch.Size(shape), splits) == have, (shape, splits)
                refused += not have
    assert refused > 50


def _refuses_steps_in_backward(size):
    model = Net()
    sharded.in_tensors(model, size)
    with pytest.raises(TypeError, match=r"Invalid model: .* DTensor"):
        lrt.step_in_backward(model, lrt.SGD(model.parameters()))


def _surface(_, size):
    _refuses_steps_in_backward(size)
    mesh = init_device_mesh("cpu", (size,))
    rows, columns = (nn.Parameter(distribute_tensor(torch.ones(6, 10), mesh, [Shard(dim)])) for dim in (0, 1))
    optimizer = lrt.SGD([("rows", rows), ("columns", columns)], lr=0.5, momentum_window=2, keep_prob=0.5)
    plain = lrt.SGD([(name, torch.ones(6, 10, requires_grad=True)) for name in ("rows", "columns")], keep_prob=0.5)
    for param, twin in zip((rows, columns), plain.param_groups[0]["params"], strict=True):
        mask = optimizer.keep_mask(param, 3)
        assert isinstance(mask, DTensor) and mask.placements == param.placements
        assert torch.equal(mask.full_tensor(), plain.keep_mask(twin, 3))
    rows.grad, columns.grad = (part_of(torch.ones(6, 10), param) for param in (rows, columns))
    optimizer.step()
    ring = optimizer.state[columns]["window_buffer"]
    assert ring.shape == (2, 6, 10) and ring.placements == (Shard(2),) and optimizer.state[rows]["step"] == 1
    assert torch.equal(rows.full_tensor() == 0.5, optimizer.keep_mask(rows, 1).full_tensor())
    # Not whole slices: refused before anything is touched, the first group too.
    before = [p.full_tensor().clone() for p in (rows, columns)]
    optimizer.param_groups[0]["centralize"] = True
    with pytest.raises(ValueError, match=r"Invalid centralize=True for a parameter of shape \(6, 10\) with placements"):
        optimizer.step()
    assert_same_bits([p.full_tensor() for p in (rows, columns)], before)
    assert optimizer.state[rows]["step"] == 1
    # A gradient that lies otherwise is redistributed; one that is a plain tensor is none of a DTensor.
    rows.grad, columns.grad = None, DTensor.from_local(torch.full((6, 10), 1.0 / size), mesh, [Partial()])
    optimizer.param_groups[0]["centralize"] = False
    optimizer.step()
    assert torch.equal(optimizer.state[columns]["window_buffer"].full_tensor()[1], torch.ones(6, 10))
    copied = copy.deepcopy(optimizer)
    twin = copied.param_groups[0]["params"][1]
    assert torch.equal(copied.keep_mask(twin, 9).full_tensor(), optimizer.keep_mask(columns, 9).full_tensor())
    for baseline in (lrt.L4Mom, lrt.L4Adam, lrt.WNGrad):
        with pytest.raises(TypeError, match=f"DTensor: must be a plain tensor for {baseline.__name__}"):
            baseline([columns]).step(lambda: 1.0)
    _centralizes_slices_of_one_element(mesh)


def _centralizes_slices_of_one_element(mesh):
    """Which one rank has all of, and the others none."""
    for backend in ("native", "reference"):
        param = nn.Parameter(distribute_tensor(torch.ones(4, 1), mesh, [Shard(1)]))
        optimizer = lrt.SGD([("param", param)], lr=0.5, centralize=True, weight_decay=0.5, backend=backend)
        param.grad = part_of(torch.ones(4, 1), param)
        optimizer.step()
        assert torch.equal(param.full_tensor(), torch.full((4, 1), 0.75))


def test_masks_states_and_gradients():
    ranks.run(_surface, 2)


def _sums(rank, size, metrics):
    results = []
    for way in (None, by_rows, hybrid, only_some):
        model = Net()
        if way is not None:
            way(model, size)
        optimizer = make(RUNS[2][0], model)
        optimizer.track_metrics = metrics
        slopes = {}
        with optimizer.add_slopes_to(slopes):
            drive(model, optimizer, range(3))
        told = {name: float(value) for name, value in optimizer.metrics().items()} if metrics else {}
        results.append({"slope": float(slopes[torch.device("cpu")]), **told})
    # Sums over other orders of some 1,700 terms of float32; counts are exact.
    assert results[0]["slope"] != 0
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)
        assert all(result[name] == results[0][name] for name in told if name.endswith("rate"))


@pytest.mark.parametrize("metrics", [False, True])
def test_sums_count_each_element_once(metrics):
    ranks.run(_sums, 4, metrics)


def _clipped(_, size):
    norms, ends = [], []
    for way in (None, by_rows, hybrid, only_some):
        model = Net()
        if way is not None:
            way(model, size)
        optimizer = lrt.SGD(model.parameters(), lr=0.1, max_norm=2.0)
        drive(model, optimizer, range(3))
        norms.append(float(optimizer.grad_norm))
        ends.append([whole(param).detach() for param in model.parameters()])
    # Sums over other orders of some 1,700 terms of float32; of shards nothing else than that differs.
    assert norms[0] > 2.0 and norms[1:] == pytest.approx(norms[:1] * 3, rel=1e-6)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0])
    return norms


def test_the_norm_of_shards_is_that_of_the_wholes():
    norms, *others = ranks.run(_clipped, 4)
    assert all(other == norms for other in others)  # or replicas would drift apart


def _tuned(rank, size):
    ends = []
    for way in (None, by_rows):
        model = Net()
        params = [param for name, param in model.named_parameters() if not name.startswith("c.")]
        if way is not None:
            way(model, size)
            params = [param for name, param in model.named_parameters() if not name.startswith("c.")]
        optimizer = lrt.SGD(params, lr=0.05, momentum=0.9)
        tuned = lrt.LossGrad(optimizer, all_reduce=False, reject_nonfinite=True, model=model)
        x = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            tuned.step(lambda model=model, x=x: (model(x) ** 2).mean())
        ends.append((float(optimizer.param_groups[0]["lr"]), [whole(param).detach() for param in params]))
    assert ends[0][0] == ends[1][0] != 0.05
    torch.testing.assert_close(ends[1][1], ends[0][1])  # the gradient's mean over the ranks is rounded


def test_lossgrad_tunes_shards():
    ranks.run(_tuned, 2)


def test_what_fsdp1_has_flattened_is_referred_to_fully_shard():
    (param,) = leaves((12,))
    param._fsdp_flattened = True
    for option in ({"keep_prob": 0.5}, {"centralize": True}):
        with pytest.raises(ValueError, match=r"FullyShardedDataParallel: .*fully_shard"):
            lrt.Adam([param], **option)
    optimizer = lrt.Adam([param])
    with pytest.raises(ValueError, match=r"Invalid add_slopes_to=True .*fully_shard"), optimizer.add_slopes_to({}):
        train(optimizer, range(1))
    assert not optimizer.state
    optimizer.max_norm = 1.0
    with pytest.raises(ValueError, match=r"Invalid max_norm=1.0 .*fully_shard"):
        train(optimizer, range(1))
    assert not optimizer.state
    optimizer.max_norm = None
    train(optimizer, range(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounding", "stochastic"), ("state_rounding", "stochastic"), ("track_metrics", True), ("track_changes", True),
     ("max_norm", 1.0)],
)  # fmt: skip
def test_fsdp1_is_refused_what_takes_the_elements_of_wholes(name, value):
    (param,) = leaves((12,), dtype=BF16)
    param._fsdp_flattened = True
    refused = pytest.raises(ValueError, match=f"Invalid {name}={value!r} for parameters flattened by Fully.*FSDP2")
    with refused:
        lrt.Adam([param], **{name: value, "state_dtype": BF16})
    optimizer = lrt.Adam([param], state_dtype=BF16)
    train(optimizer, range(5))
    before, default = [value.clone() for value in everything(optimizer)], getattr(optimizer, name)
    setattr(optimizer, name, value)
    with refused:
        train(optimizer, range(5, 6))
    assert_same_bits(everything(optimizer), before)
    setattr(optimizer, name, default)
    train(optimizer, range(5, 6))
    assert optimizer.state[param]["step"] == 6


def _flattened_later(_, size):
    for keep_prob in (1.0, 0.5):
        model = nn.Linear(6, 5)
        optimizer = lrt.SGD(model.named_parameters(), lr=0.1, keep_prob=keep_prob)
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
        wrapped(torch.ones(2, 6)).square().mean().backward()
        before = [param.detach().clone() for param in model.parameters()]
        if keep_prob == 1:
            optimizer.step()
            continue
        with pytest.raises(ValueError, match=r"Invalid keep_prob=0\.5 for parameters flattened by Fully"):
            optimizer.step()
        assert_same_bits([param.detach() for param in model.parameters()], before)
        assert not optimizer.state


def test_what_fsdp1_flattens_later_is_noticed():
    ranks.run(_flattened_later, 2)
    saved, (param,) = lrt.Adam(leaves((12,))), leaves((12,))
    train(saved, range(1))
    optimizer, slopes = lrt.Adam([param], keep_prob=0.5), {}
    param._fsdp_flattened = True
    saved.param_groups[0]["keep_prob"] = 0.5
    with pytest.raises(ValueError, match=r"Invalid keep_prob=0\.5 for parameters flattened"):
        optimizer.load_state_dict(saved.state_dict())
    assert not optimizer.state
    (param,) = leaves((12,))
    optimizer = lrt.Adam([param])
    with pytest.raises(ValueError, match="Invalid add_slopes_to=True"), optimizer.add_slopes_to(slopes):
        param._fsdp_flattened = True
        train(optimizer, range(1))
    assert not optimizer.state


def _trained(rank, size):
    """Whole training steps, in which fully_shard makes the gradients."""
    models = Net(), Net()
    by_rows(models[1], size)
    optimizers = [lrt.AdamW([pair for pair in model.named_parameters() if pair[0][0] != "c"], keep_prob=0.5, seed=3)
                  for model in models]  # fmt: skip
    for step in range(3):
        x = torch.randn(16, 24, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            (model(x) ** 2).mean().backward()
            optimizer.step()
    for (name, mine), theirs in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        before = dict(Net().named_parameters())[name]
        # Equal but for the mean over two ranks, a power of two: the gradients are the same bits.
        assert same_bits(mine.full_tensor().detach(), theirs.detach())
        assert name[0] == "c" or not torch.equal(before, theirs)


def test_whole_training_steps():
    ranks.run(_trained, 2)


def _swapped(_, size):
    """The optimizer first, its parameters swapped once the model is sharded: accelerate's order."""
    model = Net()
    expected = all_of(model, _grouped(model, STEPS))
    model = Net()
    optimizer = _grouped(model, 0)
    old = [param for _, param in model.named_parameters()]
    by_rows(model, size)
    new = dict(zip(old, model.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [new[param] for param in group["params"]]
    drive(model, optimizer, range(STEPS))
    assert_same_bits(all_of(model, optimizer), expected)
    removed = optimizer.param_groups.pop()  # nothing may hold what is gone
    drive(model, optimizer, range(STEPS, STEPS + 1))
    held = {id(param) for parts in optimizer._maps.values() for param in parts.wholes[0]}
    assert held and not held & {id(param) for param in removed["params"]}


def _grouped(model, steps):
    kinds = [[param for param in model.parameters() if (param.dim() > 1) == several] for several in (True, False)]
    optimizer = lrt.AdamW([{"params": kind} for kind in kinds], names=model, keep_prob=0.5, seed=3)
    drive(model, optimizer, range(steps))
    return optimizer


def test_parameters_swapped_for_shards_after_construction():
    ranks.run(_swapped, 2)
