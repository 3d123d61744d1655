"""How the operands of a step lie in memory, and whether a table of their addresses says enough of them."""

from collections.abc import Callable
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from .call import BESIDE, StepCall
from .operands import beside, is_lazy, is_staged, operands, shares_memory
from .watched import Columns

MAX_SLAB = 2**15  # elements; csrc/cpu/engine.h, and what cuda/runs.cuh divides by multiplication

# Whether kernels themselves step what is stored otherwise (staged.py), if a table says enough of it.
Takes = Callable[[StepCall], bool]


def slab_of(param: Tensor) -> tuple[int, int]:
    """Of a dense parameter one dimension of which lies innermost in memory, of any layout else contiguous.

    As channels do in channels_last, and the rows of a transposed matrix.

    Returns:
        Elements of that dimension and those after it, which lie together, and the size of the dimension; else zeros.
    """
    return (0, 0) if param.is_contiguous() or not param.numel() else _slab_of(param.shape, param.stride())


@lru_cache(maxsize=4096)
def _slab_of(shape: torch.Size, stride: tuple[int, ...]) -> tuple[int, int]:
    alike = torch.empty_strided(shape, stride, device="meta")
    slab = shape.numel()
    for dim, size in enumerate(shape[:-1]):
        if slab <= MAX_SLAB and alike.movedim(dim, -1).is_contiguous():
            return slab, size
        slab //= size
    return 0, 0


def columns_beside(call: StepCall, names: tuple[str, ...] = BESIDE) -> Columns:
    """What is stored beside the parameters, in whose place stands the parameter where one has none of it."""
    given = [getattr(call.storage, name, None) for name in names]
    return [[p if t is None else t for p, t in zip(call.params, column, strict=True)] for column in given if column]


def strided(call: StepCall) -> list[int]:
    """Which parameters' operands are neither contiguous nor all lie as one slab_of knows, see there."""

    def lie_alike(param: Tensor, *others: Tensor) -> bool:
        if param.is_contiguous():
            return all(other.is_contiguous() for other in others)
        known = slab_of(param)[0] and call.window is None and not call.centralize
        return bool(known) and all(other.stride() == param.stride() for other in others)

    columns = [call.params, call.grads, *(column for column in call.states.values() if column)]
    columns += columns_beside(call, ("mirrors", "lows"))
    return [i for i, operands in enumerate(zip(*columns, strict=True)) if not lie_alike(*operands)]


def fits_one_pass(call: StepCall) -> bool:
    """Whether a kernel can step what is_staged says of as it is stored, a unit of neighbouring elements a thread.

    Not rings, whose slots are rounded before they are averaged; nor centralized gradients, whose means are rounded as
    the parameters are; nor float64; nor bitmaps of tensors whose elements lie in another order than their bits.
    """
    tracks = call.storage is not None and call.storage.changes is not None
    return (
        call.window is None
        and not call.centralize
        and all(param.dtype != torch.float64 for param in call.params)
        and not (tracks and not all(param.is_contiguous() for param in call.params))
    )


def fits_table(call: StepCall, takes: Takes | None) -> bool:
    """Whether addresses say all of checked operands: alike, apart, not lazy, of one dtype, the states too."""
    states = chain(*call.states.values())
    return (
        (not is_staged(call) or (takes is not None and takes(call)))
        and not any(map(is_lazy, chain(operands(call), beside(call))))
        and not strided(call)
        and len({param.dtype for param in call.params}) == 1
        and len({state.dtype for state in states}) <= 1
        and not shares_memory(call)
    )
