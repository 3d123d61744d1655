"""What a step keeps of DTensors holds as long as they do: whatever happens to them, the step is that of the others."""

import gc
import weakref

import pytest
import ranks
import torch
from helpers import assert_same_bits
from sharded import all_of, set_grads
from torch import distributed, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

import lrtricks_fused as lrt
from lrtricks_fused.step import host

SHAPES = (50, 24), (7, 50), (50,), (3, 2, 3, 3), (5, 2)  # the last has no gradient


def _own(optimizer):
    params = optimizer.param_groups[0]["params"]
    return params, [optimizer.state[param]["exp_avg"] for param in params[:-1]]


def nothing(optimizer):
    pass


def forgotten_on_one_rank(optimizer):
    """Which takes the step as a whole, where the other repeats it."""
    if distributed.get_rank() == 0:
        optimizer._repeats.forget()


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

    for name, value in state.items():
        if isinstance(value, DTensor):
            state[name] = as_columns(value)
    torch.utils.swap_tensors(param, torch.nn.Parameter(as_columns(param)))


def other_local_of_a_half(optimizer):
    """Of a master, where there are any."""
    params, _ = _own(optimizer)
    if "param_low" in optimizer.state[params[0]]:
        low = optimizer.state[params[0]]["param_low"]
        low._local_tensor = low._local_tensor + 1


def swapped_state(optimizer):
    _, states = _own(optimizer)
    torch.utils.swap_tensors(states[0], states[0] + 1)


def local_of_a_state_taken_over(optimizer):
    """Its implementation in C++ by another object; torch refuses that while a step is remembered."""
    _, states = _own(optimizer)
    local = states[0]._local_tensor
    if optimizer._repeats._record is None or host.functions() is None:
        torch.utils.swap_tensors(local, local + 1)
        return
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(local, local + 1)
    states[0]._local_tensor = local + 1


def _first_grad(optimizer):
    params, _ = _own(optimizer)
    return params[0], params[0].grad


def other_local_of_a_gradient(optimizer):
    _, grad = _first_grad(optimizer)
    grad._local_tensor = grad._local_tensor * 2


def no_gradient(optimizer):
    param, _ = _first_grad(optimizer)
    param.grad = None


def partial_gradient(optimizer):
    param, grad = _first_grad(optimizer)
    param.grad = DTensor.from_local(grad.full_tensor(), grad.device_mesh, [Partial()])


def gradient_of_another_layout(optimizer):
    _, grad = _first_grad(optimizer)
    grad._local_tensor = grad._local_tensor.t().contiguous().t() + 1


def like_gradient(optimizer):
    """Cut alike, but by an object of its own."""
    param, grad = _first_grad(optimizer)
    param.grad = DTensor.from_local(grad._local_tensor, grad.device_mesh, [Shard(0)], run_check=False,
                                    shape=grad.shape, stride=grad.stride())  # fmt: skip


def gradient_in_waiting(optimizer):
    _, grad = _first_grad(optimizer)
    grad._local_tensor = AsyncCollectiveTensor(grad._local_tensor)


def gradient_more(optimizer):
    """Of the parameter that has had none, which is the last; see _stepped."""


# Before gradients are set, and after; then those that change nothing.
EVENTS = [nothing, forgotten_on_one_rank, other_local_of_a_parameter, other_local_of_a_state, other_state, moved_local,
          other_placements, swapped_state, other_local_of_a_half, local_of_a_state_taken_over]  # fmt: skip
OF_GRADIENTS = [other_local_of_a_gradient, no_gradient, partial_gradient, gradient_of_another_layout, gradient_more,
                like_gradient, gradient_in_waiting]  # fmt: skip
HARMLESS = nothing, forgotten_on_one_rank, like_gradient, gradient_in_waiting
STORED = {
    "plain": (torch.float32, {}),
    "split": (torch.bfloat16, {"master": "split", "track_changes": True}),
    "stochastic": (torch.bfloat16, {"rounding": "stochastic", "state_dtype": torch.bfloat16}),
    "summed": (torch.float32, {"max_norm": 0.5, "track_metrics": True}),
}


def _stepped(size, event, remembers, stored):
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (size,))
    dtype, options = STORED[stored]
    params = [nn.Parameter(distribute_tensor(torch.randn(shape, dtype=dtype), mesh, [Shard(0)])) for shape in SHAPES]
    model = nn.ParameterList(params)
    optimizer = lrt.Adam(model.named_parameters(), lr=0.1, keep_prob=0.5, seed=3, backend="native", **options)
    for step in range(9):
        if step == 7:  # what is remembered of a first look is made at later ones
            assert (optimizer._repeats._repeated > 0) == (remembers and host.functions() is not None)
            if event in EVENTS:
                event(optimizer)
        if not remembers:
            optimizer._maps.clear()
            optimizer._tables.clear()
            optimizer._kept = None
            optimizer._repeats.forget()
        set_grads(model, step)
        if step < 7 or event is not gradient_more:
            params[-1].grad = None
        if step == 7 and event in OF_GRADIENTS:
            event(optimizer)
        stepped = [tensor for p in params if p.grad is not None for tensor in (p, p._local_tensor)]
        versions = [tensor._version for tensor in stepped]
        optimizer.step()
        assert all(tensor._version > before for tensor, before in zip(stepped, versions, strict=True))
    changes = optimizer.pop_changes().values() if optimizer.track_changes else ()
    metrics = optimizer.metrics().values() if optimizer.track_metrics else ()
    norms = [] if optimizer.max_norm is None else [optimizer.grad_norm]
    return all_of(model, optimizer) + [change.bitmap for change in changes] + [*metrics, *norms]


def _follow(_, size, library, stored):
    if not library:
        host.functions = lambda: None  # of this process alone
    undisturbed = None
    for event in EVENTS + OF_GRADIENTS:
        remembered, derived_anew = (_stepped(size, event, remembers, stored) for remembers in (True, False))
        assert_same_bits(remembered, derived_anew)
        expected = undisturbed or derived_anew
        pairs = zip(remembered, expected, strict=False)
        alike = len(remembered) == len(expected) and all(torch.equal(mine, theirs) for mine, theirs in pairs)
        is_harmless = event in HARMLESS or (event is other_local_of_a_half and stored != "split")
        assert is_harmless is alike, event
        undisturbed = undisturbed or remembered


@pytest.mark.parametrize(("library", "stored"), [(True, stored) for stored in STORED] + [(False, "plain")])
def test_steps_follow_the_tensors(library, stored):
    ranks.run(_follow, 2, library, stored)


def _let_go(*_):
    """Nothing holds gradients after a step: not one that was repeated, refused, or found to be another at the last."""
    mesh = init_device_mesh("cpu", (1,))
    params = [nn.Parameter(distribute_tensor(torch.randn(30), mesh, [Shard(0)])) for _ in range(70)]
    optimizer = lrt.Adam(params, lr=0.1, keep_prob=0.5)

    def stepped(change=None, match=""):
        for param in params:
            param.grad = DTensor(torch.randn(30), param._spec, requires_grad=False)
        held = [weakref.ref(param.grad._local_tensor) for param in params]
        if change is None:
            optimizer.step()
        else:
            change()
            with pytest.raises(ValueError, match=match):
                optimizer.step()
        for param in params:
            param.grad = None
        gc.collect()
        assert all(reference() is None for reference in held)

    def other_dtype():
        params[-1].grad._local_tensor = torch.ones(30).double()

    for _ in range(6):
        stepped()
    assert optimizer._repeats._repeated > 0
    stepped(other_dtype, "Invalid gradient of dtype")
    for _ in range(6):
        stepped()
    assert optimizer._repeats._repeated > 0
    stepped(lambda: optimizer.param_groups[0].update(lr=-1), "Invalid lr=-1")


def test_gradients_are_let_go():
    ranks.run(_let_go, 1)
