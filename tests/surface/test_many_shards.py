"""Repeated steps of many DTensors, at which several threads look, wherever their gradients come from."""

import itertools

import ranks
import torch
from helpers import assert_same_bits
from sharded import alike, like, partial
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

import lrtricks_fused as lrt
from lrtricks_fused.optim import shards
from lrtricks_fused.step import host

LAYERS = 40  # enough that two threads look at their tensors
SHAPE = 6, 5


def model():
    """Many small layers, as they are anew."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(LAYERS)])


def backward(module, step, place):
    """Gradients as training has them: those of steps in between are gone."""
    module.zero_grad()
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
    output = module(place(inputs))
    (output.full_tensor() if isinstance(output, DTensor) else output).square().mean().backward()


def by_fully_shard(module, mesh):
    fully_shard(module, mesh=mesh)
    return lambda inputs: inputs


def by_replicas(module, mesh):
    distribute_module(module, mesh)
    return lambda inputs: distribute_tensor(inputs, mesh, [Replicate()])


def in_training(_, size):
    torch.set_num_threads(2)
    mesh = init_device_mesh("cpu", (size,))
    for cut in (by_fully_shard, by_replicas):
        sharded, alone = model(), model()
        place = cut(sharded, mesh)
        optimizer, reference = (
            lrt.Adam(each.named_parameters(), lr=0.01, keep_prob=0.5, backend=backend)
            for each, backend in ((sharded, "native"), (alone, "reference"))
        )
        for step in range(6):
            backward(sharded, step, place)
            backward(alone, step, lambda inputs: inputs)
            optimizer.step()
            reference.step()
        if host.functions() is not None:
            assert optimizer._repeats._repeated == 6 - 3, cut  # the first makes states, two are waited for
        assert_same_bits([p.full_tensor() for p in sharded.parameters()], [p.detach() for p in alone.parameters()])


def test_training_repeats_its_steps():
    ranks.run(in_training, 2)


KINDS = {  # of each step, and whether it repeats the one before
    like: ([like] * 6, [False] * 3 + [True] * 3),
    alike: ([alike] * 6, [False] * 3 + [True] * 3),
    partial: (
        [like, alike, like, alike, alike, like, partial, like],
        [False] * 3 + [True] * 3 + [False] * 2,
    ),
}


def assigned(_, size):
    torch.set_num_threads(2)
    mesh = init_device_mesh("cpu", (size,))
    for where, (kinds, repeated) in itertools.product((Shard(0), Replicate()), KINDS.values()):
        torch.manual_seed(0)
        params = [nn.Parameter(distribute_tensor(torch.randn(SHAPE), mesh, [where])) for _ in range(2 * LAYERS)] + [
            nn.Parameter(torch.ones(3)) for _ in range(5)
        ]
        optimizers = [
            lrt.Adam([(str(n), param) for n, param in enumerate(own)], lr=0.01, keep_prob=0.5, backend=backend)
            for own, backend in ((params, "native"), ([nn.Parameter(p.detach().clone()) for p in params], "reference"))
        ]
        ours, expected = ([*map(shards.local, optimizer.param_groups[0]["params"])] for optimizer in optimizers)
        for step, kind in enumerate(kinds):
            for optimizer in optimizers:
                torch.manual_seed(step)
                for param in optimizer.param_groups[0]["params"]:
                    values = torch.randn(param.shape)
                    param.grad = kind(param, values) if isinstance(param, DTensor) else values
                optimizer.step()
            is_repeated = optimizers[0]._repeats._repeated > 0
            assert is_repeated == (repeated[step] and host.functions() is not None), step
        assert_same_bits(*([tensor.detach() for tensor in tensors] for tensors in (ours, expected)))


def test_gradients_cut_by_other_objects():
    ranks.run(assigned, 2)
