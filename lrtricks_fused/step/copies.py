"""Calls that are stepped in another's place: of copies that addresses can say, or of one parameter at a time."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from .call import BESIDE, StepCall, Storage
from .operands import is_lazy, written


def _of_one(storage: Storage | None, i: int) -> Storage | None:
    """How one parameter alone is stored."""
    if storage is None:
        return None
    return replace(storage, **{n: column[i : i + 1] for n in BESIDE if (column := getattr(storage, n)) is not None})


def one_by_one(call: StepCall) -> list[StepCall]:
    """A call of each parameter alone."""

    def of_one(columns: dict[str, list[Tensor]], i: int) -> dict[str, list[Tensor]]:
        return {name: column[i : i + 1] for name, column in columns.items()}

    return [
        replace(
            call, params=[param], grads=[grad], steps=[step], param_indices=[index], prepared=False,
            table=None, kept=None, states=of_one(call.states, i), scalar_states=of_one(call.scalar_states, i),
            tables=None if param.is_cpu else {}, index_maps=[index_map], storage=_of_one(call.storage, i),
        )
        for i, (param, grad, step, index, index_map) in enumerate(
            zip(call.params, call.grads, call.steps, call.param_indices, call.maps, strict=True)
        )
    ]  # fmt: skip


def real(tensor: Tensor) -> Tensor:
    """A contiguous copy, in memory, of whatever lies anyhow or nowhere."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def plain(call: StepCall, strided: Iterable[int] = ()) -> StepCall:
    """The same call with copies of lazy operands in their place, and contiguous ones of these parameters' operands."""
    to_copy = set(strided)

    def copies(tensors: list[Tensor]) -> list[Tensor]:
        return [real(t) if is_lazy(t) or (i in to_copy and not t.is_contiguous()) else t.detach()
                for i, t in enumerate(tensors)]  # fmt: skip

    states = {name: copies(column) for name, column in call.states.items()}
    return replace(call, params=copies(call.params), grads=copies(call.grads), states=states, tables={})


def writable(tensors: Iterable[Tensor]) -> AbstractContextManager:
    """A context in which operations write as kernels do: outside inference mode to what was made in it, too."""
    return torch.inference_mode() if any(map(Tensor.is_inference, tensors)) else nullcontext()


def copy_back(copies: StepCall, call: StepCall) -> None:
    """What a step of ``copies`` has written, into the operands of ``call``."""
    columns = (copies.params, call.params), *zip(copies.states.values(), call.states.values(), strict=True)
    with writable(written(call)):
        for copy, tensor in ((copy, tensor) for pair in columns for copy, tensor in zip(*pair, strict=True)):
            if copy.data_ptr() != tensor.data_ptr() or is_lazy(tensor):
                tensor.copy_(copy)
