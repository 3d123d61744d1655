r"""Clipping inside a step: one factor for the gradients of all groups, from their norm, which stays on the device.

.. math:: g \leftarrow g \min\left(1, \frac{\text{max\_norm}}{\lVert g \rVert_2 + 10^{-6}}\right)

as torch.nn.utils.clip_grad_norm_ has it, but for ``.grad``, which stays as it is: the step itself scales what it reads.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..step.backends import Backend
from ..step.call import StepCall
from ..step.device import integers_beside, write_at
from ..step.streams import Streams
from ..step.table import SLOPE_COLUMNS
from .checks import check_max_norm
from .devices import moved
from .shards import OverRanks, is_dtensor, local

Places = list[Sequence[int]]


def places(calls: list[StepCall], params: Iterable[Tensor], groups: int) -> Places:
    """Of each call's parameters the places among all that are stepped, in the order of the groups.

    Backends differ in how they spread the parameters of a group over calls; places do not. ``params`` are those of all
    groups, of DTensors the local tensors; of so many groups some are stepped.
    """
    if groups == len(calls):  # one call of each, as nearly always
        ends = list(accumulate(len(call.params) for call in calls))
        return [range(end - len(call.params), end) for call, end in zip(calls, ends, strict=True)]
    stepped = dict.fromkeys(param for call in calls for param in call.params)
    place = {param: number for number, param in enumerate(param for param in params if param in stepped)}
    return [[place[param] for param in call.params] for call in calls]


class Clipping:
    """The clipping of one step. Every call gets its ``clip``, one number on its device; ``measure`` writes it.

    In between the backends prepare the calls, and may make others of them that read the same number.

    Args:
        max_norm: to which the norm is clipped.
        calls: of the step.
        places: of their parameters, see :func:`places`.
        params: those of the optimizer, among which DTensors are looked for.
    """

    def __init__(self, max_norm: Any, calls: list[StepCall], places: Places, params: Iterable[Tensor] = ()) -> None:
        check_max_norm("max_norm", max_norm)
        self._max_norm, self._calls, self._places = float(max_norm), calls, places
        self._wholes = {local(param): param for param in params if is_dtensor(param)}
        self._over_ranks: OverRanks | None = None
        self._clips: dict[torch.device, Tensor] = {}
        for call in calls:
            device = call.params[0].device
            if device not in self._clips:
                self._clips[device] = torch.empty((), dtype=torch.float64, device=device)
            call.clip = self._clips[device]
        self._streams = {device: Streams() for device in self._clips}

    def measure(self, backends: list[Backend]) -> Tensor:
        """The norm of the unscaled gradients, a float64 on the first call's device. Nothing waits for the device.

        Parameters on several devices: numbers go from one GPU to another in stream order; only where some are on the
        CPU, too, is the GPU waited for.
        """
        if not self._calls:
            return torch.zeros((), dtype=torch.float64)
        for device, streams in self._streams.items():  # of later steps, too, which may be on others
            streams.use(device, [self._clips[device]])
        squares = self._squares(backends)
        if self._over_ranks is None:
            self._over_ranks = OverRanks(self._sharded())
        kept = self._calls[0].kept
        self._over_ranks.add(squares, lambda values: integers_beside(kept, values, squares.device))
        device, scale = squares.device, self._calls[0].grad_scale
        norm, clip = torch.empty((), dtype=torch.float64, device=device), self._clips[device]
        backends[0].clip(squares, norm, clip, scale, self._max_norm)
        for other, own in self._clips.items():
            if other != device:
                own.copy_(moved(clip, other))
        return norm

    def _sharded(self) -> list[tuple[int, Any]]:
        """The parameters that are DTensors, with their places, in the order of these."""
        if not self._wholes:
            return []
        pairs = chain(
            *(zip(places, call.params, strict=True) for call, places in zip(self._calls, self._places, strict=True))
        )
        return sorted(
            ((place, self._wholes[param]) for place, param in pairs if param in self._wholes), key=itemgetter(0)
        )

    def _squares(self, backends: list[Backend]) -> Tensor:
        """The squared norms of all gradients, and room for columns behind them.

        They are told by their places, however the parameters are spread over calls and devices.
        """
        size = sum(map(len, self._places)) + SLOPE_COLUMNS
        of_devices = {device: torch.zeros(size, dtype=torch.float64, device=device) for device in self._clips}
        for backend, call, places in zip(backends, self._calls, self._places, strict=True):
            write_at(places, call.kept, of_devices[call.params[0].device], partial(backend.squares, call))
        squares, *others = of_devices.values()
        for other in others:
            squares = squares + moved(other, squares.device)
        return squares
