"""Parameters that are DTensors: which elements of the whole a rank holds, and their local tensors in a step.

A step touches local tensors alone. Placements say which elements they are, so that the keep decisions are those of the
whole parameter, and nothing is communicated; states are DTensors as their parameters are, so that checkpoints know what
they hold.
"""

import sys
from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from ..step.host import same
from ..step.keep import IndexMap
from ..step.operands import waited
from .cuts import Runs, Split, all_have_maps, map_of, of_rank

_spec, _local_tensor = attrgetter("_spec"), attrgetter("_local_tensor")
_mesh, _placements = attrgetter("_spec.mesh"), attrgetter("_spec.placements")


def dtensor_type() -> Any:
    """The class, or nothing: the module, which takes long to import, is there where one has been made."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())


def is_dtensor(tensor: object) -> bool:
    """Whether it is a DTensor."""
    return isinstance(tensor, dtensor_type())


def local(tensor: Any) -> Tensor:
    """What this rank holds of a DTensor; any other tensor itself."""
    # Not to_local(), which makes a new view of a parameter each time: tables know tensors by which object they are.
    return tensor._local_tensor if is_dtensor(tensor) else tensor


# -- which elements of the whole ---------------------------------------------------------------------------------------


def _splits(param: Any) -> tuple[Split, ...]:
    """How a DTensor is cut, by the dimensions of its mesh from left to right.

    Raises:
        ValueError: a placement is neither Shard nor _StridedShard nor Replicate.
    """
    found, mesh = [], param.device_mesh
    for number, placement in enumerate(param.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ not in ("Shard", "_StridedShard"):
            raise _refused(param, "only Shard and Replicate say which elements a rank holds")
        found.append(Split(number, placement.dim, mesh.size(number), getattr(placement, "split_factor", 1)))
    return tuple(found)


def runs_of(param: Any) -> list[Runs]:
    """Of each dimension of a DTensor the indices that this rank holds.

    Mesh dimensions cut from left to right: Shard(d) is a part of torch.chunk, _StridedShard(d, split_factor=f) that
    part of each of f chunks.

    Raises:
        ValueError: a placement is neither of these nor Replicate, or this rank is not in the mesh.
    """
    runs: list[Runs] = [[(0, size)] if size else [] for size in param.shape]
    mesh, coordinate = param.device_mesh, param.device_mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(f"Invalid parameter of shape {tuple(param.shape)}: this rank is not in its mesh {mesh}")
    for split in _splits(param):
        runs[split.dim] = of_rank(runs[split.dim], split, coordinate[split.mesh_dim])
    return runs


def _refused(param: Any, why: str) -> ValueError:
    return ValueError(f"Invalid parameter of shape {tuple(param.shape)} with placements {param.placements}: {why}")


def index_map(param: Any) -> IndexMap | None:
    """Which elements of the whole parameter this rank's are; None where the rank has all of them.

    Raises:
        ValueError: some rank's are no runs of one length at one distance, or this rank's not as many as the local
            tensor has.
    """
    runs = runs_of(param)
    if not all_have_maps(param.shape, _splits(param)):
        raise _refused(param, "the elements of each rank must be runs of one length at one distance")
    held = [sum(length for _, length in own) for own in runs]
    if tuple(held) != tuple(local(param).shape):
        raise _refused(param, f"they give shards of shape {tuple(held)}, but the local tensor is "
                              f"{tuple(local(param).shape)}")  # fmt: skip
    if held == list(param.shape):
        return None
    if 0 in held:
        return IndexMap(0, 1, 1)
    return map_of(param.shape, runs)


def check_centralize(param: Any) -> None:
    """Raises ValueError unless all ranks hold whole slices, over which gradient centralization takes means."""
    dims = [getattr(placement, "dim", 0) for placement in param.placements]
    if any(dim and param.shape[dim] > 1 and param.device_mesh.size(number) > 1 for number, dim in enumerate(dims)):
        raise ValueError(
            f"Invalid centralize=True for a parameter of shape {tuple(param.shape)} with placements "
            f"{param.placements}: the means are over all dimensions but the first, which must not be cut"
        )


# -- local tensors and DTensors of them --------------------------------------------------------------------------------


def _shifted(placement: Any, by: int) -> Any:
    """A placement of tensors that have ``by`` more leading dimensions."""
    if by == 0 or not hasattr(placement, "dim"):
        return placement
    factor = {"split_factor": placement.split_factor} if hasattr(placement, "split_factor") else {}
    return type(placement)(placement.dim + by, **factor)


def placed(values: Tensor, param: Any) -> Tensor:
    """``values``, local ones, as a DTensor that lies as ``param`` does; it may have more leading dimensions."""
    by = values.dim() - param.dim()
    shape = torch.Size((*values.shape[:by], *param.shape))
    stride = torch.empty(shape, device="meta").stride() if by else param.stride()
    placements = [_shifted(placement, by) for placement in param.placements]
    return type(param).from_local(
        values, param.device_mesh, placements, run_check=False, shape=shape, stride=tuple(stride)
    )


def gradients(params: list[Tensor], grads: list[Any]) -> list[Any]:
    """The plain tensors of gradients, some of which are wrappers or None; see :func:`gradient`."""
    if {*map(type, params)} == {*map(type, grads)} == {dtensor_type()} and _are_cut_alike(params, grads):
        held = list(map(_local_tensor, grads))  # nothing else to ask of many
        return held if {*map(type, held)} == {Tensor} else list(map(waited, held))
    return [grad if grad is None else gradient(param, grad) for param, grad in zip(params, grads, strict=True)]


def _are_cut_alike(params: list[Any], grads: list[Any]) -> bool:
    """Whether each gradient is cut as its parameter is, which fully_shard says by one object for both."""
    return all(map(is_, map(_spec, params), map(_spec, grads))) or (
        all(map(is_, map(_mesh, params), map(_mesh, grads)))
        and list(map(_placements, params)) == list(map(_placements, grads))
    )


def other_specs(params: list[Any], known: list[Any]) -> list[Any] | None:
    """The objects by which the gradients of DTensors are cut, if others than those known, and cut as these are."""
    grads = [param.grad for param in params]
    if {*map(type, grads)} != {dtensor_type()}:
        return None
    specs = list(map(_spec, grads))
    return None if same(specs, known) or not _are_cut_alike(params, grads) else specs


def gradient(param: Any, grad: Tensor) -> Tensor:
    """The plain tensor of a gradient: of a DTensor this rank's part, cut as the parameter is.

    A gradient that lies otherwise (a Partial one) is redistributed first, by all ranks.

    Raises:
        TypeError: it is another wrapper than the parameter.
    """
    if not (is_dtensor(param) and is_dtensor(grad)):
        return waited(grad)
    own: Any = grad
    if own._spec is not param._spec and (own.placements != param.placements or own.device_mesh != param.device_mesh):
        if own.device_mesh != param.device_mesh:
            raise ValueError(f"Invalid gradient on {own.device_mesh}: its parameter is on {param.device_mesh}")
        own = own.redistribute(param.device_mesh, param.placements)
    return waited(local(own))


def cut(whole: Tensor, param: Any) -> Tensor:
    """This rank's part of a plain tensor of the whole parameter's shape, maybe with more leading dimensions."""
    by = whole.dim() - param.dim()
    for dim, runs in enumerate(runs_of(param), by):
        if runs != [(0, whole.shape[dim])]:
            places = [torch.arange(first, first + length, device=whole.device) for first, length in runs]
            none = torch.empty(0, dtype=torch.int64, device=whole.device)
            whole = whole.index_select(dim, torch.cat([none, *places]))
    return whole


def gathered(tensor: Any) -> Tensor:
    """The whole of a DTensor, on every rank; all take part."""
    if tensor.dtype != torch.int16:
        return tensor.full_tensor()
    # Neither gloo nor NCCL takes int16.
    as_bf16 = type(tensor).from_local(
        waited(local(tensor)).view(torch.bfloat16), tensor.device_mesh, tensor.placements, run_check=False,
        shape=tensor.shape, stride=tensor.stride(),
    )  # fmt: skip
    return as_bf16.full_tensor().view(torch.int16)


def saved_part(saved: Any, param: Any) -> Tensor:
    """What is loaded of a saved state of the whole parameter: this rank's part, or the whole where that is plain.

    A DTensor that lies otherwise is gathered first, by all ranks.
    """
    if is_dtensor(saved):
        by = saved.dim() - param.dim()
        if (
            is_dtensor(param)
            and saved.device_mesh == param.device_mesh
            and list(saved.placements) == [_shifted(placement, by) for placement in param.placements]
        ):
            return waited(local(saved))
        saved = gathered(saved)
    return cut(saved, param) if is_dtensor(param) else saved


# -- sums over ranks ---------------------------------------------------------------------------------------------------


def counts(param: Any) -> bool:
    """Whether sums over all ranks count this rank's elements: of several ranks that have the same ones, the first's."""
    coordinate = param.device_mesh.get_coordinate()
    return all(place == 0 for place, at in zip(coordinate, param.placements, strict=True) if at.is_replicate())


class OverRanks:
    """Makes numbers of DTensors' local parts those of the wholes; every element counts once.

    All ranks of a mesh take part, each with the same parameters in the same order.

    Args:
        params: DTensors, each with the place of its number.

    Raises:
        ValueError: they are on meshes of different ranks, of which each would find another sum over all.
    """

    def __init__(self, params: list[tuple[int, Any]]) -> None:
        of_meshes: dict[Any, list[tuple[int, Any]]] = {}
        for place, param in params:
            of_meshes.setdefault(param.device_mesh, []).append((place, param))
        ranks = {tuple(sorted(mesh.mesh.flatten().tolist())) for mesh in of_meshes}
        if len(ranks) > 1:
            some = " and ".join(map(str, sorted(ranks)[:2]))
            raise ValueError(f"Invalid max_norm with parameters on meshes of ranks {some}: must be of the same ranks")
        self._of_meshes = [
            (mesh, tuple(place for place, _ in members), tuple(int(counts(param)) for _, param in members))
            for mesh, members in of_meshes.items()
        ]

    def add(self, values: Tensor, integers: Callable[[tuple[int, ...]], Tensor]) -> None:
        """Add those of the other ranks to each of these; ``integers`` makes a tensor of some where the values are."""
        for mesh, of_mesh, counted in self._of_meshes:
            places, own = integers(of_mesh), integers(counted) != 0
            part = values[places]
            values[places] = sum_over_mesh(torch.where(own, part, torch.zeros_like(part)), mesh)


def sum_over_mesh(values: Tensor, mesh: Any) -> Tensor:
    """The sum of the ranks' values, the same on each."""
    on_mesh = values if values.device.type == mesh.device_type else values.to(mesh.device_type)
    for dim in range(mesh.ndim):
        torch.distributed.all_reduce(on_mesh, group=mesh.get_group(dim))
    return on_mesh.to(values.device)
