"""What a step sums over all elements while it steps them: its slope, and the metrics of the optimizer."""

from typing import Any

import torch
from torch import Tensor

from ..step.call import SUMS
from ..step.reference import sqrt_rn
from ..step.streams import Streams
from .devices import moved
from .shards import counts, is_dtensor, sum_over_mesh

Slopes = dict[torch.device, Tensor]


class StepSums:
    """Where the calls of one step add their sums; those of DTensors are of all ranks once it is over.

    Args:
        slopes: what gains the slope, by device, or None; see :meth:`.MaskedOptimizer.add_slopes_to`.
        metrics: whether all sums are wanted.
    """

    def __init__(self, slopes: Slopes | None, metrics: bool) -> None:
        self._slopes, self._shape = slopes, (len(SUMS),) if metrics else ()
        self._own: dict[tuple[torch.device, Any], Tensor] = {}  # by device and mesh
        self._uncounted: dict[tuple[torch.device, Any], Tensor] = {}  # of what other ranks count
        self._streams: dict[tuple[torch.device, Any], Streams] = {}

    def of(self, param: Any) -> Tensor:
        """What a call of parameters such as this one adds its sums to.

        Raises:
            ValueError: what there is for the slope is not one float64 on the parameter's device.
        """
        device, mesh = param.device, param.device_mesh if is_dtensor(param) else None
        if self._slopes is not None:
            if device not in self._slopes:
                self._slopes[device] = torch.zeros((), dtype=torch.float64, device=device)
            slope = self._slopes[device]
            if slope.dtype != torch.float64 or slope.numel() != 1 or slope.device != device:
                raise ValueError(f"Invalid slopes[{device}]={slope!r}: must be one float64 on {device}")
            if mesh is None and not self._shape:
                return slope
        if (device, mesh) not in self._own:
            self._own[device, mesh] = torch.zeros(self._shape, dtype=torch.float64, device=device)
            self._streams[device, mesh] = Streams()
        if mesh is None or counts(param):
            return self._own[device, mesh]
        if (device, mesh) not in self._uncounted:
            self._uncounted[device, mesh] = torch.zeros_like(self._own[device, mesh])
        return self._uncounted[device, mesh]

    def begin_again(self) -> None:
        """Before the same calls: their sums are of one step."""
        for key, own in self._own.items():
            self._streams[key].use(own.device, [own, self._uncounted.get(key)])
            own.zero_()

    def finish(self) -> Tensor | None:
        """After the calls: add the slopes where they belong, and return all sums of all devices, if they are wanted."""
        total: Tensor | None = None
        for (device, mesh), own in self._own.items():
            sums = own if mesh is None else sum_over_mesh(own, mesh)
            if self._slopes is not None:
                self._slopes[device] += sums[0] if self._shape else sums
            if self._shape:
                total = sums if total is None else total + moved(sums, total.device)
        return total


def metrics(sums: Tensor) -> dict[str, Tensor]:
    """What :meth:`.MaskedOptimizer.metrics` makes of the sums of a step."""
    of = dict(zip(SUMS, sums.unbind(), strict=True))
    one = of["elements"] / of["elements"]  # NaN where nothing was stepped
    return {
        "keep_rate": of["kept"] / of["elements"],
        "change_rate": of["changed"] / of["elements"],
        "update_norm": sqrt_rn(of["squared_update"] * one),
        "param_norm": sqrt_rn(of["squared_param"] * one),
    }
