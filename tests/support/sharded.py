"""A small model, the ways to cut it into shards, and what a test reads of it: the whole parameters and states."""

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lrtricks_fused.optim import shards


class Net(nn.Module):
    """Even, uneven, tiny and 4-d parameters."""

    def __init__(self, dtype=torch.float32):
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
    """The same gradients of the whole parameters, in their grad_dtype, cut as these are.

    In all but the first two steps by the very same object, as those of fully_shard are: such steps can be repeated.
    """
    generator = torch.Generator().manual_seed(500 + step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.grad_dtype or param.dtype)
        if shards.is_dtensor(param):
            grad = part_of(grad, param)
            if step >= 2:
                grad._spec = param._spec
        param.grad = grad


def drive(model, optimizer, steps):
    for step in steps:
        set_grads(model, step)
        optimizer.step()


def whole(value):
    return shards.gathered(value) if shards.is_dtensor(value) else value


def all_of(model, optimizer):
    """Whole parameters and states."""
    return [whole(torch.as_tensor(value)).detach() for param in model.parameters()
            for value in [param, *[v for _, v in sorted(optimizer.state[param].items())]]]  # fmt: skip


# -- gradients: of a DTensor, and its values as a whole ----------------------------------------------------------------


def like(param, whole):
    """Cut by the parameter's own object, as after a backward pass."""
    return DTensor(shards.cut(whole, param).contiguous(), param._spec, requires_grad=False)


def alike(param, whole):
    """Cut alike by another object, each time a new one."""
    return distribute_tensor(whole, param.device_mesh, param.placements)


def partial(param, whole):
    """To be added up over the ranks: no gradient that could be taken as it is, though it may have the very shape."""
    own = whole if distributed.get_rank() == 0 else torch.zeros_like(whole)
    return DTensor.from_local(own, param.device_mesh, [Partial()], run_check=False)


def replicated(param, whole):
    """On each rank as a whole."""
    return DTensor.from_local(whole, param.device_mesh, [Replicate()], run_check=False)


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
