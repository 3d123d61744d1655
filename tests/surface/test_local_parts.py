"""What a step keeps of DTensors holds as long as they do: whatever happens to them, the step is that of the others."""

import pytest
import ranks
import torch
from helpers import assert_same_bits
from sharded import all_of, drive
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import lrtricks_fused as lrt
from lrtricks_fused.step import host

SHAPES = (50, 24), (7, 50), (50,), (3, 2, 3, 3)


def _own(optimizer):
    params = optimizer.param_groups[0]["params"]
    return params, [optimizer.state[param]["exp_avg"] for param in params]


def nothing(optimizer):
    pass


def other_local_of_a_parameter(optimizer):
    params, _ = _own(optimizer)
    params[1]._local_tensor = params[1]._local_tensor.detach().clone() + 1


def other_local_of_a_state(optimizer):
    _, states = _own(optimizer)
    states[2]._local_tensor = states[2]._local_tensor.clone() + 1


def other_state(optimizer):
    params, states = _own(optimizer)
    optimizer.state[params[0]]["exp_avg"] = states[0] + 1


def moved_local(optimizer):
    _, states = _own(optimizer)
    states[2]._local_tensor.data = states[2]._local_tensor + 1


def other_placements(optimizer):
    """The same object becomes a shard of columns: other elements of another whole."""
    params, _ = _own(optimizer)
    param, state = params[0], optimizer.state[params[0]]
    param.grad = None

    def as_columns(tensor):
        return DTensor.from_local(
            tensor._local_tensor.detach().clone(), tensor.device_mesh, [Shard(1)], run_check=False
        )

    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = as_columns(state[name])
    torch.utils.swap_tensors(param, torch.nn.Parameter(as_columns(param)))


def swapped_state(optimizer):
    _, states = _own(optimizer)
    torch.utils.swap_tensors(states[0], states[0] + 1)


EVENTS = [nothing, other_local_of_a_parameter, other_local_of_a_state, other_state, moved_local, other_placements,
          swapped_state]  # fmt: skip


def _stepped(size, event, remembers):
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (size,))
    params = [nn.Parameter(distribute_tensor(torch.randn(shape), mesh, [Shard(0)])) for shape in SHAPES]
    model = nn.ParameterList(params)
    optimizer = lrt.Adam(model.named_parameters(), lr=0.1, keep_prob=0.5, seed=3, backend="native")
    for step in range(6):
        if step == 4:  # what is remembered of a first look is made at later ones
            event(optimizer)
        if not remembers:
            optimizer._maps.clear()
            optimizer._tables.clear()
            optimizer._kept = None
        drive(model, optimizer, [step])
    return all_of(model, optimizer)


def _follow(_, size, library):
    if not library:
        host.functions = lambda: None  # of this process alone
    undisturbed = None
    for event in EVENTS:
        remembered, derived_anew = (_stepped(size, event, remembers) for remembers in (True, False))
        assert_same_bits(remembered, derived_anew)
        pairs = zip(remembered, undisturbed or derived_anew, strict=True)
        assert (undisturbed is None) is all(torch.equal(mine, theirs) for mine, theirs in pairs), event
        undisturbed = undisturbed or remembered


@pytest.mark.parametrize("library", [True, False], ids=["library", "Python"])
def test_steps_follow_the_tensors(library):
    ranks.run(_follow, 2, library)
