"""Parameters that are DTensors step as the whole ones do, on any number of ranks and cut in any way: the same bits."""

import copy
import functools
import io
from types import SimpleNamespace

import pytest
import ranks
import torch
from helpers import assert_same_bits, everything, leaves, same_bits, train
from inventory import RICH
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import lrtricks_fused as lrt
from lrtricks_fused.optim import shards
from lrtricks_fused.step.keep import IndexMap

BACKEND = "reference"
STEPS = 20
F32, BF16 = torch.float32, torch.bfloat16
# Every rule, and centralization where a rank holds whole slices.
RUNS = [(case.name, dtype) for case in RICH for dtype in (F32, BF16)]
CENTRALIZED = {"centralize": True}
by_name = {case.name: case for case in RICH}


class Net(nn.Module):
    """Even, uneven, tiny and 4-d parameters."""

    def __init__(self, dtype=F32):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(24, 50, dtype=dtype), nn.Linear(50, 7, dtype=dtype)
        self.c = nn.Conv2d(2, 3, 3, dtype=dtype)
        self.d = nn.Parameter(torch.randn(1, dtype=dtype))

    def forward(self, x):
        """The model's output, without the convolution."""
        return self.b(self.a(x).relu()) * self.d


def part_of(whole, param):
    """``whole`` as a DTensor that lies as ``param``."""
    placed = whole
    for dim, placement in enumerate(param.placements):
        if not placement.is_replicate():
            size, place = param.device_mesh.size(dim), param.device_mesh.get_coordinate()[dim]
            placed = placement._split_tensor(placed, size, with_padding=False)[0][place]
    stride = torch.empty(whole.shape, device="meta").stride()
    return DTensor.from_local(
        placed.contiguous(), param.device_mesh, param.placements, shape=whole.shape, stride=stride
    )


def set_grads(model, step):
    """The same gradients of the whole parameters, cut as these are."""
    generator = torch.Generator().manual_seed(500 + step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = part_of(grad, param) if shards.is_dtensor(param) else grad


def drive(model, optimizer, steps=range(STEPS)):
    for step in steps:
        set_grads(model, step)
        optimizer.step()


def whole(value):
    return value.full_tensor() if shards.is_dtensor(value) else value


def all_of(model, optimizer):
    """Whole parameters and states."""
    return [whole(torch.as_tensor(value)).detach() for param in model.parameters()
            for value in [param, *[v for _, v in sorted(optimizer.state[param].items())]]]  # fmt: skip


def make(name, model, **options):
    return by_name[name].make(model.named_parameters(), keep_prob=0.5, seed=3, **options)


@functools.cache
def single(name, dtype, steps=STEPS, **options):
    """What one process makes of the plain model."""
    model = Net(dtype)
    optimizer = make(name, model, backend="native", **dict(options))
    drive(model, optimizer, range(steps))
    return all_of(model, optimizer)


# -- ways to cut a model -----------------------------------------------------------------------------------------------


def by_rows(model, size):
    fully_shard(model.a)
    fully_shard(model)


def by_columns(model, size):
    def where(param):
        return Shard(1) if param.dim() > 1 and param.shape[1] % size == 0 else Shard(0)

    fully_shard(model, mesh=init_device_mesh("cpu", (size,)), shard_placement_fn=where)


def hybrid(model, size):
    fully_shard(model, mesh=init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard")))


def tensor_parallel(model, mesh):
    parallelize_module(model, mesh, {"a": ColwiseParallel(), "b": RowwiseParallel()})
    for module, name in ((model.c, "weight"), (model.c, "bias"), (model, "d")):
        param = nn.Parameter(distribute_tensor(getattr(module, name).data, mesh, [Replicate()]))
        module.register_parameter(name, param)


def in_tensors(model, size):
    tensor_parallel(model, init_device_mesh("cpu", (size,)))


def in_both(model, size):
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("rows", "tensors"))
    tensor_parallel(model, mesh["tensors"])
    fully_shard(model, mesh=mesh["rows"])


def only_some(model, size):
    """DTensors beside plain tensors, which all ranks have alike."""
    fully_shard(model.a)


WAYS = {
    "rows-1": (by_rows, 1), "rows-2": (by_rows, 2), "rows-3": (by_rows, 3), "rows-4": (by_rows, 4),
    "columns-2": (by_columns, 2), "hybrid-4": (hybrid, 4), "tensors-2": (in_tensors, 2), "both-4": (in_both, 4),
    "some-2": (only_some, 2),
}  # fmt: skip


def _same_as_single(rank, size, way, runs):
    for name, dtype, options in runs:
        model = Net(dtype)
        WAYS[way][0](model, size)
        optimizer = make(name, model, backend=BACKEND, **options)
        drive(model, optimizer)
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
    runs = runs if way in ("rows-2", "rows-3") else runs[::3]
    ranks.run(_same_as_single, WAYS[way][1], way, runs)
