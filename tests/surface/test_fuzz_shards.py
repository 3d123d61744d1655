"""Whatever a training script does between steps of many DTensors, on two ranks, with one thread or several.

The bits are those of the whole parameters, stepped by the reference, and of an optimizer that remembers nothing from
one step to the next. With LRTRICKS_FULL=1 many more scripts.
"""

import random

import fuzz_training as events
import ranks
import torch
from fuzz_training import params_of, values
from helpers import assert_same_bits
from inventory import FULL, RICH
from sharded import alike, like, partial, replicated
from test_fuzz_training import STORED, forget, told
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lrtricks_fused.optim import shards
from lrtricks_fused.step import host

SCRIPTS, STEPS = 60 if FULL else 2, 12
SHAPES = [(6, 5), (1,), (3,), (), (7, 2, 2), (64,), (33, 9), (2, 3), (513,)]


def placements(rng, shapes):
    """Of parameters of these shapes: all replicated, or some of them, beside shards and plain ones (None)."""
    some = [Replicate()] if rng.random() < 0.3 else [Replicate(), None, Shard(0), Shard(0), Shard(0)]
    return [rng.choice([where for where in some if shape or not isinstance(where, Shard)]) for shape in shapes]


def set_gradients(optimizer, rng, kind, missing):
    for param in params_of(optimizer):
        whole = values(rng, param.shape, param.dtype)
        param.grad = kind(param, whole) if shards.is_dtensor(param) else whole
        if rng.random() < missing:
            param.grad = None


# -- events ------------------------------------------------------------------------------------------------------------


def other_local_of_a_parameter(optimizer, rng):
    param = rng.choice(params_of(optimizer))
    if shards.is_dtensor(param):
        param._local_tensor = param._local_tensor.detach().clone()


def other_locals_of_states(optimizer, rng):
    for state in optimizer.state.get(rng.choice(params_of(optimizer)), {}).values():
        if shards.is_dtensor(state):
            state._local_tensor = state._local_tensor.clone()


def swapped(optimizer, rng):
    """Another object of the same values becomes the parameter, as accelerate does it."""
    param = rng.choice(params_of(optimizer))
    grad, param.grad = param.grad, None
    torch.utils.swap_tensors(param, nn.Parameter(param.detach().clone()))
    param.grad = grad


def gradients_in_place(optimizer, rng):
    for param in params_of(optimizer):
        if param.grad is not None:
            shards.local(param.grad).mul_(0.5)


def other_threads(optimizer, rng):
    torch.set_num_threads(rng.randint(1, 3))


def nothing(optimizer, rng):
    pass


EVENTS = [nothing] * 25 + [
    other_local_of_a_parameter, other_locals_of_states, swapped, gradients_in_place, other_threads,
    events.scheduled, events.loaded, events.loaded_own, events.loaded_of_other_types, events.foreign_entry,
    events.state_dict_looked_at, events.a_gradient_is_gone, events.zeros_as_gradients, events.frozen,
    events.masked_otherwise, events.metrics_toggled, events.changes_toggled, events.skipped_for_an_overflow,
]  # fmt: skip


# -- scripts -----------------------------------------------------------------------------------------------------------


def parts(optimizer, cut):
    """What a rank has of parameters and states, which may be whole ones of parameters that ``cut`` has cut."""
    found = []
    for param, own in zip(params_of(optimizer), params_of(cut), strict=True):
        for value in [param, *(value for _, value in sorted(optimizer.state.get(param, {}).items()))]:
            value = torch.as_tensor(value).detach()
            if shards.is_dtensor(own) and not shards.is_dtensor(value) and value.dim() >= own.dim():
                value = shards.cut(value, own)
            found.append(shards.local(value))
    return found


def follow(mesh, stored, seed):
    """How many steps were repeated."""
    rng = random.Random(seed)
    dtype, options = STORED[stored]
    case = rng.choice(RICH)
    shapes = [rng.choice(SHAPES) for _ in range(rng.choice([5, 70]))]
    cuts = placements(rng, shapes)
    wholes = [values(rng, shape, dtype) for shape in shapes]

    def made(backend, is_cut):
        params = [
            nn.Parameter(distribute_tensor(whole.clone(), mesh, [where]) if is_cut and where else whole.clone())
            for whole, where in zip(wholes, cuts, strict=True)
        ]
        named = [(f"{number}", param) for number, param in enumerate(params)]
        return case.make(
            [{"params": named[:3]}, {"params": named[3:]}], keep_prob=0.5, seed=3, backend=backend, **options
        )

    optimizers = [made("native", True), made("native", True), made("reference", False)]
    repeated, repeats = 0, optimizers[0]._repeats
    for step in range(STEPS):
        repeats._patience, before = 1, repeats._repeated  # whatever was in vain: what matters are the steps that repeat
        event, kind = rng.choice(EVENTS), rng.choice([like] * 6 + [alike] * 3 + [partial, replicated])
        missing, is_new, salt = rng.choice([0] * 5 + [0.2]), rng.random() < 0.7 or not step, rng.getrandbits(32)
        for number, optimizer in enumerate(optimizers):
            if is_new:
                set_gradients(optimizer, random.Random(salt), kind, missing)
            event(optimizer, random.Random(salt))
            if number == 1:
                forget(optimizer)
                optimizer._repeats.forget()
            optimizer.step()
            vars(optimizer).pop("grad_scale", None), vars(optimizer).pop("found_inf", None)
        first, *others = [parts(optimizer, optimizers[0]) for optimizer in optimizers]
        try:
            for other in others:
                assert_same_bits(first, other)
            assert_same_bits(*map(told, optimizers[:2]))
        except AssertionError as error:
            what = f"{stored}, {seed}: {case.name}, step {step}, {event.__name__}, {kind.__name__}"
            raise AssertionError(what) from error
        repeated += repeats._repeated > before
    return repeated


def scripts(_, size):
    mesh = init_device_mesh("cpu", (size,))
    return sum(follow(mesh, stored, seed) for stored in STORED for seed in range(SCRIPTS))


def test_what_is_remembered_of_shards_changes_nothing():
    repeated = ranks.run(scripts, 2, seconds=1800 if FULL else 120)
    assert host.functions() is None or min(repeated) > STEPS * SCRIPTS // 2, repeated  # a tenth of them
