"""Checkpoints of shards: saved on some ranks, gone on with on others or in one process, also after a SIGKILL."""

import copy
import functools
import os
import signal

import pytest
import ranks
import torch
import torch.distributed.checkpoint as dcp
from helpers import assert_same_bits, same_bits
from sharded import Net, all_of, by_columns, by_rows, drive
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.optim import ZeroRedundancyOptimizer as Zero
from torch.distributed.tensor import DTensor

import lrtricks_fused as lrt
from lrtricks_fused.optim import shards

HALF, STEPS = 5, 10
BF16 = torch.bfloat16  # whose fp32 states a careless load would round
OPTIMIZERS = {
    "Adam": functools.partial(lrt.Adam, lr=0.01, amsgrad=True, keep_prob=0.5, seed=3),
    "window": functools.partial(lrt.SGD, lr=0.01, momentum_window=3, keep_prob=0.5, seed=3),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.distributed.checkpoint, about its own insides


def make(which, cut=None, size=1):
    model = Net(BF16)
    if cut is not None:
        cut(model, size)
    return model, OPTIMIZERS[which](model.named_parameters())


@functools.cache
def uninterrupted(which, steps=STEPS):
    """What one process makes of the plain model without a break."""
    model, optimizer = make(which)
    drive(model, optimizer, range(steps))
    return all_of(model, optimizer)


def state_dicts(model, optimizer, flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))


def save(folder, model, optimizer, flatten=False):
    dcp.save(state_dicts(model, optimizer, flatten), checkpoint_id=folder)


def load(folder, model, optimizer, flatten=False):
    saved = state_dicts(model, optimizer, flatten)
    dcp.load(saved, checkpoint_id=folder)
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=options
    )


def _saved(_, size, which, folder, flatten):
    model, optimizer = make(which, by_rows, size)
    drive(model, optimizer, range(HALF))
    save(folder, model, optimizer, flatten)


def _loaded(_, size, which, folder, flatten, cut):
    model, optimizer = make(which, cut, size)
    load(folder, model, optimizer, flatten)
    drive(model, optimizer, range(HALF, STEPS))
    assert_same_bits(all_of(model, optimizer), uninterrupted(which))


@pytest.mark.parametrize("which", OPTIMIZERS)
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoints_go_on_on_any_number_of_ranks(which, flatten, tmp_path):
    folder = str(tmp_path / "checkpoint")
    ranks.run(_saved, 2, which, folder, flatten)
    for size, cut in ((1, by_rows), (2, by_columns), (3, by_rows), (1, None)):
        ranks.run(_loaded, size, which, folder, flatten, cut)


def _by_hand(rank, size, which, path):
    model, optimizer = make(which, by_rows, size)
    plain, alone = make(which)
    drive(model, optimizer, range(HALF))
    drive(plain, alone, range(HALF))
    torch.save(optimizer.state_dict(), f"{path}{rank}")
    saved = torch.load(f"{path}{rank}", weights_only=False)
    # Each rank's own file, the whole plain checkpoint into shards, and the shards' into a plain model.
    for of, (into, other) in (
        (saved, make(which, by_rows, size)), (saved, make(which, by_columns, size)), (saved, make(which)),
        (alone.state_dict(), make(which, by_rows, size)),
    ):  # fmt: skip
        before = copy.deepcopy(of["state"][1])
        other.load_state_dict(of)
        with torch.no_grad():
            for param, value in zip(into.parameters(), plain.parameters(), strict=True):
                shards.local(param).copy_(shards.cut(value, param) if isinstance(param, DTensor) else value)
        drive(into, other, range(HALF, STEPS))
        assert_same_bits(all_of(into, other), uninterrupted(which))
        for name, value in before.items():  # what is loaded is not aliased
            now = of["state"][1][name]
            assert same_bits(shards.local(value), shards.local(now))
    model, optimizer = make(which, by_rows, size)
    wrong = copy.deepcopy(alone.state_dict())
    name = next(n for n in wrong["state"][1] if n not in ("step", "identity"))
    wrong["state"][1][name] = wrong["state"][1][name][..., :1]  # no whole state, and no shard's either
    with pytest.raises(ValueError, match=f"Invalid state_dict: {name} has shape"):
        optimizer.load_state_dict(wrong)
    assert not optimizer.state


@pytest.mark.parametrize("which", OPTIMIZERS)
def test_state_dicts_of_shards_and_whole_ones_go_into_each_other(which, tmp_path):
    ranks.run(_by_hand, 2, which, str(tmp_path / "rank"))


# -- ZeroRedundancyOptimizer -------------------------------------------------------------------------------------------


def _weights(sizes):
    torch.manual_seed(0)
    return torch.nn.ParameterDict({f"w{i}": torch.nn.Parameter(torch.randn(size)) for i, size in enumerate(sizes)})


def _stepped(pairs, steps, without=()):
    for step in steps:
        for model, optimizer in pairs:
            generator = torch.Generator().manual_seed(step)
            for name, param in model.items():
                grad = torch.randn(param.shape, generator=generator)
                param.grad = None if name in without else grad
            optimizer.step()


def _zero_resumed(rank, size, sizes, without):
    adam = functools.partial(lrt.Adam, lr=0.1, keep_prob=0.5, track_changes=True)
    plain, model = _weights(sizes), _weights(sizes)
    alone, zero = adam(plain.named_parameters()), Zero(model.parameters(), functools.partial(adam, names=model))
    _stepped([(plain, alone), (model, zero)], range(2), without)
    zero.consolidate_state_dict()
    saved = [zero.state_dict() if rank == 0 else None]
    torch.distributed.broadcast_object_list(saved)
    resumed = _weights(sizes)
    resumed.load_state_dict(model.state_dict())
    zero = Zero(resumed.parameters(), functools.partial(adam, names=resumed))
    zero.load_state_dict(saved[0])
    names = {param: name for name, param in resumed.items()}
    own = [names[param] for group in zero.optim.param_groups for param in group["params"]]
    for name in own:  # before the first step, too
        assert same_bits(zero.optim.keep_mask(resumed[name], 3), alone.keep_mask(plain[name], 3))
    assert [*zero.optim.pop_changes()] == own
    _stepped([(plain, alone), (resumed, zero)], range(2, 4))
    assert_same_bits([param.detach() for param in resumed.values()], [param.detach() for param in plain.values()])
    assert zero.optim.param_groups[0]["param_names"] == own == [*zero.optim.pop_changes()]


def _all_zero_resumed(rank, size):
    for sizes, without in (((40, 5, 6, 7), ()), ((10, 10, 9, 9), ("w2", "w3")), ((10,), ())):
        _zero_resumed(rank, size, sizes, without)


def test_zero_redundancy_goes_on_by_its_own_names():
    ranks.run(_all_zero_resumed, 2)


# -- killed ------------------------------------------------------------------------------------------------------------


def _killed(rank, size, folder, at, cut):
    """Trains with a checkpoint after every second step, and dies in the middle of one."""
    model, optimizer = make("Adam", cut, size)
    for step in range(STEPS):
        drive(model, optimizer, range(step, step + 1))
        if step == at:
            if size > 1:
                torch.distributed.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 2 == 1:
            if cut is None:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/new")
                os.replace(f"{folder}/new", f"{folder}/{step}")
            else:
                save(f"{folder}/{step}", model, optimizer)


def _resumed(rank, size, folder, cut, whole):
    model, optimizer = make("Adam", cut, size)
    last = max(int(name) for name in os.listdir(folder) if name.isdigit())
    if whole:
        saved = torch.load(f"{folder}/{last}", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    else:
        load(f"{folder}/{last}", model, optimizer)
    drive(model, optimizer, range(last + 1, STEPS))
    assert_same_bits(all_of(model, optimizer), uninterrupted("Adam"))


@pytest.mark.parametrize("at", [4, 7])
@pytest.mark.parametrize(("size", "cut"), [(1, None), (2, by_rows)], ids=["one", "two"])
def test_a_killed_run_goes_on_bit_for_bit(size, cut, at, tmp_path):
    with pytest.raises(AssertionError, match="died, exit code -9"):
        ranks.run(_killed, size, str(tmp_path), at, cut)
    ways = [(1, None, True)] if cut is None else [(2, by_rows, False), (3, by_rows, False), (1, None, False)]
    for ranks_now, cut_now, whole in ways:
        ranks.run(_resumed, ranks_now, str(tmp_path), cut_now, whole)
