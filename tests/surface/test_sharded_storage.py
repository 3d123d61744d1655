"""Masters, mirrors, stochastic rounding, changed bits of DTensors: gathered they are those of the whole parameters."""

import functools
import re
from dataclasses import replace

import pytest
import ranks
import sharded
import torch
import torch.distributed.checkpoint as dcp
from helpers import assert_same_bits
from inventory import FULL
from sharded import Net, all_of, by_columns, by_rows, drive, only_some, whole
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import lrtricks_fused as lrt
from lrtricks_fused.optim import shards
from lrtricks_fused.step.staged import unpacked_bits

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
STEPS = 4
KINDS = {
    "split": (BF16, {"master": "split", "track_changes": True}),
    "stochastic": (BF16, {"rounding": "stochastic", "state_dtype": BF16, "state_rounding": "stochastic",
                          "track_changes": True}),
    "states": (F32, {"state_dtype": BF16, "state_rounding": "stochastic", "track_changes": True}),
    "offload": (F32, {"mirror": BF16, "track_changes": True}),
}  # fmt: skip
WAYS = {"rows-2": (by_rows, 2), "columns-2": (by_columns, 2)}
if FULL:
    WAYS |= {"rows-1": (by_rows, 1), "some-2": (only_some, 2), "tensors-2": (sharded.in_tensors, 2)}


def make(kind, cut=None, size=1, backend="native"):
    """A model, its optimizer, and mirrors of what this rank holds; where there are any, gradients are bf16."""
    dtype, options = KINDS[kind]
    options = dict(options)
    mirror = options.pop("mirror", None)
    model = Net(dtype)
    if cut is not None:
        cut(model, size)
    optimizer = lrt.Adam(model.named_parameters(), lr=1e-3, keep_prob=0.5, seed=3, backend=backend, **options)
    mirrors = []
    for param in model.parameters() if mirror else ():
        mirrors.append(torch.empty_like(shards.local(param).detach(), dtype=mirror))
        optimizer.mirror(param, mirrors[-1])
        param.grad_dtype = BF16
    return model, optimizer, mirrors


def gathered(model, optimizer, mirrors):
    """Whole parameters, states, masters and mirrors; then the changed elements, as whole masks."""
    params, changes = list(model.parameters()), optimizer.pop_changes().values()
    found = all_of(model, optimizer)
    if "split" in str(optimizer._master):
        found += [whole(optimizer.master(param)) for param in params]
    own = [*mirrors]
    for param, change in zip(params, changes, strict=True):
        own.append(unpacked_bits(change.bitmap, change.numel).view(shards.local(param).shape))
    places = [*params[: len(mirrors)], *params]
    return found + [
        whole(shards.placed(value, param)) if shards.is_dtensor(param) else value
        for value, param in zip(own, places, strict=True)
    ]


@functools.cache
def single(kind, steps=STEPS):
    """What one process makes of the plain model, by the reference."""
    made = make(kind, backend="reference")
    drive(*made[:2], range(steps))
    return gathered(*made)


def _same_as_single(_, size, way):
    for kind in KINDS:
        made = make(kind, WAYS[way][0], size)
        drive(*made[:2], range(STEPS))
        assert_same_bits(gathered(*made), single(kind))


@pytest.mark.parametrize("way", WAYS)
def test_the_bits_of_the_single_process(way):
    ranks.run(_same_as_single, WAYS[way][1], way)


def _received(_, size, way):
    """A plain model, to which all ranks' changes are applied."""
    for kind in ("split", "offload"):
        dtype = KINDS[kind][1].get("mirror") or KINDS[kind][0]
        model, optimizer, mirrors = make(kind, WAYS[way][0], size)
        receiver = Net(KINDS[kind][0]).to(dtype)
        for step in range(3):
            drive(model, optimizer, range(2 * step, 2 * step + 2))
            of_ranks = [None] * size
            distributed.all_gather_object(of_ranks, optimizer.pop_changes())
            for changes in of_ranks:
                lrt.apply_changes(receiver, changes)
            own = list(model.parameters())
            if mirrors:
                own = [shards.placed(value, param) if shards.is_dtensor(param) else value
                       for value, param in zip(mirrors, own, strict=True)]  # fmt: skip
            assert_same_bits([p.detach() for p in receiver.parameters()], [whole(value).detach() for value in own])


def test_changes_of_all_ranks_make_the_whole():
    ranks.run(_received, 2, "columns-2")


def _save(_, size, folder):
    for kind in ("split", "stochastic"):
        model, optimizer, _mirrors = make(kind, by_rows, size)
        drive(model, optimizer, range(2))
        dcp.save(dict(zip("mo", get_state_dict(model, optimizer), strict=True)), checkpoint_id=f"{folder}/{kind}")
        torch.save(optimizer.state_dict(), f"{folder}/{kind}-{distributed.get_rank()}")


def _resume(rank, size, folder):
    """From distributed checkpoints, or from a rank's own, into parameters that are cut otherwise, or not at all."""
    for kind in ("split", "stochastic"):
        for cut, by_hand in ((by_columns, False), (by_columns, True), (None, True)):
            model, optimizer, _mirrors = make(kind, cut, size)
            plain = make(kind)
            drive(*plain[:2], range(2))
            if by_hand:
                optimizer.load_state_dict(torch.load(f"{folder}/{kind}-{rank}", weights_only=False))
                with torch.no_grad():
                    for param, value in zip(model.parameters(), plain[0].parameters(), strict=True):
                        shards.local(param).copy_(shards.cut(value, param) if shards.is_dtensor(param) else value)
            else:
                saved = dict(zip("mo", get_state_dict(model, optimizer), strict=True))
                dcp.load(saved, checkpoint_id=f"{folder}/{kind}")
                set_state_dict(model, optimizer, model_state_dict=saved["m"], optim_state_dict=saved["o"])
            drive(model, optimizer, range(2, STEPS))
            resumed = all_of(model, optimizer)
            assert_same_bits(resumed, single(kind)[: len(resumed)])
            everything = [change.count == change.numel for change in optimizer.pop_changes().values()]
            assert all(everything)  # what was stepped before is not known


@pytest.mark.filterwarnings("ignore")  # of torch.distributed.checkpoint, about its own insides
def test_a_saved_run_goes_on_cut_otherwise(tmp_path):
    ranks.run(_save, 2, str(tmp_path))
    ranks.run(_resume, 2, str(tmp_path))


def refused(error, text):
    return pytest.raises(error, match=re.escape(text))


def _refusals(_, size):
    mesh = init_device_mesh("cpu", (size,))
    model, optimizer, _mirrors = make("offload", by_rows, size)
    param = model.a.weight
    with refused(ValueError, f"Invalid mirror of shape {tuple(param.shape)}"):  # the whole's
        optimizer.mirror(param, torch.empty(param.shape, dtype=BF16))
    with refused(TypeError, "Invalid mirror of type DTensor"):
        optimizer.mirror(param, distribute_tensor(torch.zeros(param.shape, dtype=BF16), mesh, [Shard(0)]))
    with refused(ValueError, "Invalid mirrors: 1 for 2 parameters"):
        optimizer.add_param_group({"params": list(Net().b.parameters()), "mirrors": [None]})
    drive(model, optimizer, range(1))
    changes = optimizer.pop_changes()
    with refused(ValueError, "Invalid changes of 'd': the model's parameter is a DTensor: must be a plain tensor"):
        lrt.apply_changes(model, changes)
    untold = replace(changes["a.weight"], whole_numel=None)  # as pickled by an earlier version
    for rows, of_a, text in (
        (12, changes["a.weight"], "they are of a parameter of 1200 elements, the model's has 288"),
        (60, changes["a.weight"], "they are of a parameter of 1200 elements, the model's has 1440"),
        (12, untold, "they are of elements up to"),
    ):
        other = Net().to(BF16)
        other.a = torch.nn.Linear(24, rows, dtype=BF16)
        kept = [value.detach().clone() for value in other.parameters()]
        with refused(ValueError, f"Invalid changes of 'a.weight': {text}"):
            lrt.apply_changes(other, {"b.weight": changes["b.weight"], "a.weight": of_a})
        assert_same_bits([value.detach() for value in other.parameters()], kept)


def _bad_halves(_, size):
    model, optimizer, _mirrors = make("split", by_rows, size)
    drive(model, optimizer, range(1))
    before = all_of(model, optimizer)
    for low, text in ((torch.zeros(3, dtype=torch.int16), "param_low"), (torch.zeros(50, 24), "param_low")):
        saved = optimizer.state_dict()
        saved["state"][1] = {**saved["state"][1], "param_low": low}  # of a.weight
        with refused(ValueError, text):
            optimizer.load_state_dict(saved)
        assert_same_bits(all_of(model, optimizer), before)
    for number, param in enumerate(model.parameters()):
        param.grad = None
        if number == 1:
            param.grad_dtype = F16
            param.grad = sharded.part_of(torch.ones(param.shape, dtype=F16), param)
    with refused(ValueError, f"Invalid gradient of dtype {F16}"):
        optimizer.step()
    assert_same_bits(all_of(model, optimizer), before)


def _all_refusals(rank, size):
    _refusals(rank, size)
    _bad_halves(rank, size)


def test_what_is_refused_is_refused_by_name():
    ranks.run(_all_refusals, 2)
