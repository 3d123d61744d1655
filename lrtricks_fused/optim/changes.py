"""Changed bits: which elements steps have changed, packed, to be applied where the same parameters are kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..step.keep import IndexMap
from ..step.staged import packed_bits, unpacked_bits
from .identity import canonical
from .shards import index_map, is_dtensor


@dataclass(frozen=True)
class Changes:
    """What has changed of one parameter, or of the shard of it that a rank holds.

    Attributes:
        count: how many elements.
        bitmap: uint8; bit i % 8 of byte i // 8 says whether element i, in row-major order, has changed.
        values: those of the changed elements, in their order.
        numel: elements of the parameter or of the shard.
        index_map: which elements of the whole parameter a shard holds; None: it is the whole.
        whole_numel: elements of the whole parameter; None: not told.
    """

    count: int
    bitmap: Tensor
    values: Tensor
    numel: int
    index_map: IndexMap | None = None
    whole_numel: int | None = None


def all_changed(param: Tensor) -> Tensor:
    """The bitmap that says so of every element."""
    return packed_bits(torch.ones(param.shape, dtype=torch.bool, device=param.device))


def taken(bitmap: Tensor, stored: Tensor, param: Any) -> Changes:
    """The changes that a bitmap tells, which becomes zeros."""
    mask = unpacked_bits(bitmap, stored.numel())
    values = stored.detach().flatten()[mask]
    where = index_map(param) if is_dtensor(param) else None
    changes = Changes(len(values), bitmap.clone(), values, stored.numel(), where, param.numel())
    bitmap.zero_()
    return changes


@torch.no_grad()
def apply_changes(model: nn.Module | Iterable[Tensor], changes: Mapping[str | int, Changes]) -> None:
    """Write what has changed elsewhere into the parameters of a model: where these were equal, they are so again.

    Args:
        model: a module, whose parameters are found by name, or the parameters in the order in which the sender's
            optimizer has them.
        changes: what :meth:`pop_changes` returned there, on any device; of shards, each into the whole parameters,
            which are plain tensors.

    Raises:
        ValueError: a parameter is missing, or has not as many elements, or another dtype; nothing has been changed.
    """
    if isinstance(model, nn.Module):
        params: dict[str | int, Tensor] = {canonical(name): param for name, param in model.named_parameters()}
    else:
        params = dict(enumerate(model))
    found = {}
    for name, change in changes.items():
        param = params.get(canonical(name) if isinstance(name, str) else name)
        why = _unfit(param, change)
        if param is None or why:
            raise ValueError(f"Invalid changes of {name!r}: {why}")
        found[name] = param
    for name, param in found.items():
        change = changes[name]
        elements = unpacked_bits(change.bitmap, change.numel).nonzero().squeeze(1)
        if change.index_map is not None:
            elements = change.index_map.element(elements)
        param.put_(elements.to(param.device), change.values.to(param.device))


def _counted(bitmap: object, numel: int) -> int | None:
    """The elements that a bitmap of ``numel`` tells; None if it is none."""
    if not isinstance(bitmap, Tensor) or bitmap.dtype != torch.uint8 or bitmap.shape != (-(-numel // 8),):
        return None
    if numel % 8 and int(bitmap[-1]) >> numel % 8:
        return None
    bits = torch.tensor([number.bit_count() for number in range(256)], dtype=torch.uint8, device=bitmap.device)
    return int(bits[bitmap.int()].sum())


def _unfit(param: Tensor | None, change: Changes) -> str | None:
    """Why a parameter cannot take the changes; None if it can."""
    if param is None:
        return "the model has no such parameter"
    if not isinstance(change, Changes):
        return f"they are a {type(change).__name__}, not what pop_changes() returns"
    told = _counted(change.bitmap, change.numel)
    if told is None:
        return f"their bitmap is none of {change.numel} elements"
    if not told == change.count == change.values.numel():
        own = f"their bitmap tells {told} elements, their count {change.count}"
        return f"{own}, and they have {change.values.numel()} values"
    if is_dtensor(param):
        return "the model's parameter is a DTensor: must be a plain tensor of the whole, to be distributed afterwards"
    whole = change.numel if change.index_map is None else change.whole_numel
    if whole is not None and whole != param.numel():
        return f"they are of a parameter of {whole} elements, the model's has {param.numel()}"
    if change.index_map is not None and change.numel:
        last = change.index_map.element(change.numel - 1)
        if last >= param.numel():
            return f"they are of elements up to {last}, the model's parameter has {param.numel()}"
    if change.values.dtype != param.dtype:
        return f"they are {change.values.dtype}, the model's parameter is {param.dtype}"
    return None
