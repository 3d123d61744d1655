"""Parts of a parameter group: parameters that one call of a backend can step together."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..step.layouts import slab_of
from .groups import CheckedGroup, Group
from .shards import counts, is_dtensor, local

PLAIN = {type(None), Tensor, torch.nn.Parameter}  # types of nearly all gradients


@dataclass
class Part:
    """Parameters of one group that take part in a step together: on one device; on a GPU of one dtype, too."""

    key: Hashable
    group: Group
    checked: CheckedGroup
    params: list[Tensor]
    grads: list[Tensor]  # of DTensors this rank's
    sharded: bool = False  # whether some of the parameters are DTensors

    @property
    def table_key(self) -> Hashable:
        """By which it is known between steps."""
        return id(self.group), self.key

    def some(self, key: Hashable, chosen: list[int]) -> "Part":
        """Those at the chosen places."""
        params, grads = [self.params[i] for i in chosen], [self.grads[i] for i in chosen]
        return Part(key, self.group, self.checked, params, grads, self.sharded)


def has_order(param: Tensor, tracked: bool) -> bool:
    """Whether kernels on a GPU step the parameter in the order of memory: a list of such is one launch.

    Args:
        param: local.
        tracked: whether its changed bits are kept, which lie in the order of indices.
    """
    if param.is_contiguous() or tracked or torch.compiler.is_compiling():
        return param.is_contiguous()
    return slab_of(param)[0] != 0


def only_key(params: list[Tensor], together: bool) -> Hashable:
    """The key of the part that all of them make up; None where that takes a look at each.

    Args:
        params: all with a gradient.
        together: whether parameters on the CPU are in one part, whatever they are.
    """
    if together and all([param.is_cpu for param in params]):
        return params[0].device
    if torch.compiler.is_compiling() or not {*map(type, params)} <= PLAIN:
        return None
    on_gpus = all([param.is_cuda for param in params])  # of which the number is told faster than the device
    devices: set[Any] = {*map(Tensor.get_device, params)} if on_gpus else {param.device for param in params}
    if len(devices) > 1 or len({param.dtype for param in params}) > 1 or not all(map(Tensor.is_contiguous, params)):
        return None
    return params[0].device, params[0].dtype, True


def split(
    group: Group, checked: CheckedGroup, grads: list[Any], together: bool, tracked: bool, sharded: bool, apart: bool
) -> list[Part]:
    """The parts of a group's parameters that have a gradient.

    Args:
        group: of the parameters.
        checked: what follows from it.
        grads: of the parameters, or None.
        together: whether parameters on the CPU are in one part, whatever they are.
        tracked: whether changed bits are kept.
        sharded: whether some are DTensors.
        apart: whether those that several ranks have are in parts of their own.
    """
    parts: dict[Hashable, Part] = {}
    for param, grad in zip(group["params"], grads, strict=True):
        if grad is not None:
            on_cpu = together and param.device.type == "cpu"
            key: Hashable = param.device if on_cpu else (param.device, param.dtype, has_order(local(param), tracked))
            if apart:
                key = (key, param.device_mesh, counts(param)) if is_dtensor(param) else (key, None)
            own = parts.setdefault(key, Part(key, group, checked, [], [], sharded))
            own.params.append(param)
            own.grads.append(grad)
    return list(parts.values())
