"""The sums of a step in plain tensor operations: means of slices, and slopes, in the order of the fused kernels."""

import torch
from torch import Tensor

from .call import StepCall, slice_partials
from .keep import LANES, TILE
from .table import CHUNK, SLOPE_COLUMNS

CHUNK_TILES = CHUNK // TILE


def in_order(values: Tensor, dim: int) -> Tensor:
    """The sum over ``dim`` from first to last: torch.sum has an order of its own."""
    total = torch.zeros_like(values.select(dim, 0))
    for value in values.unbind(dim):
        total = total + value
    return total


def centralized(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad``, in the compute type, less its means over all dimensions but the first, as ``dtype`` would store it."""
    slices = grad.flatten(1)
    length = slices.shape[1]
    partials = slice_partials(length)
    padded = torch.nn.functional.pad(slices, (0, -length % partials))
    sums = in_order(padded.view(len(slices), -1, partials), 1).double()
    means = (in_order(sums, 1) / length).to(grad.dtype)
    return (slices - means.unsqueeze(1)).to(dtype).to(grad.dtype).view(grad.shape)


def slope_terms(grad: Tensor, old_param: Tensor, new_param: Tensor) -> list[Tensor]:
    """Every element's share of the slope <grad, old_param - new_param> (``csrc/core/slope.h``)."""
    return [grad * (old_param - new_param)]


def metric_terms(old_param: Tensor, new_param: Tensor, keep: Tensor, changed: Tensor) -> list[Tensor]:
    """Every element's share of the sums that follow the slope in SUMS (``csrc/core/sums.h``)."""
    displacement = new_param - old_param
    counts = [mask.to(old_param.dtype) for mask in (keep, changed)]
    return [*counts, displacement * displacement, new_param * new_param]


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one floating dtype hold the same bits."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return a.resolve_neg().view(bits) == b.resolve_neg().view(bits)


def inverse_scale(grad_scale: Tensor | None, device: torch.device) -> float | Tensor:
    """1 / grad_scale in float64, an infinity of 0; what is on the CPU is read there, for a copy would wait."""
    if grad_scale is None:
        return 1.0
    inverse = 1.0 / grad_scale.double().reshape(())
    return float(inverse) if inverse.is_cpu else inverse.to(device)


def unless_skipped(values: Tensor, found_inf: Tensor | None) -> Tensor:
    """``values``, or zeros of them where an overflow was found: nothing waits for the device to learn which."""
    if found_inf is None or (found_inf.is_cpu and float(found_inf) == 0):
        return values
    if found_inf.is_cpu:
        return torch.zeros_like(values)
    return torch.where(found_inf.to(values.device).reshape(()) == 0, values, torch.zeros_like(values))


def squared_norm(grad: Tensor, lanes: int) -> Tensor:
    """The sum of the squares of a gradient, as float64, in the order of ``csrc/core/squares.h``."""
    return slope_total([sums_of_chunks([grad * grad], lanes)])[0]


def sums_of_chunks(terms: list[Tensor], lanes: int) -> Tensor:
    """The sums of each chunk of 16 tiles, as float64, a row for each of the terms.

    ``lanes``: how many neighbouring lanes make a unit. All terms at once: on a GPU each addition is a launch.
    """
    if not terms:
        return torch.empty(0, 0, dtype=torch.float64, device="cpu")
    flat = torch.stack([term.flatten() for term in terms])
    chunks = -(-flat.shape[1] // (CHUNK_TILES * TILE))
    flat = torch.nn.functional.pad(flat, (0, chunks * CHUNK_TILES * TILE - flat.shape[1]))
    of_lanes = in_order(flat.view(len(terms), chunks, CHUNK_TILES, TILE // LANES, LANES), 3)
    units = in_order(of_lanes.view(len(terms), chunks, CHUNK_TILES, LANES // lanes, lanes), 4).double()
    return in_order(in_order(units, 3), 2)


def add_totals(call: StepCall, chunks: list[Tensor]) -> None:
    """Add the sums of a call's parameters, each by chunks, to those of the call; nothing where it was skipped."""
    if call.sums is None or not chunks:
        return
    totals = slope_total(chunks)
    totals[0] *= inverse_scale(call.grad_scale, call.sums.device)
    if len(totals) > 1:  # and the elements; a copy of their number would wait for the device
        totals = torch.cat([totals, totals.new_full((1,), sum(map(Tensor.numel, call.params)))])
    call.sums.view(-1).add_(unless_skipped(totals, call.found_inf))


def slope_total(chunks: list[Tensor]) -> Tensor:
    """The sum over the chunks of all tensors, of each row: columns of every 256th chunk first."""
    flat = torch.cat(chunks, -1)
    count = flat.shape[-1]
    rows, columns = -(-count // SLOPE_COLUMNS), min(count, SLOPE_COLUMNS)  # further columns would add zeros
    if rows == 0:
        return flat.sum(-1)
    padded = torch.nn.functional.pad(flat, (0, rows * columns - count))
    return in_order(in_order(padded.unflatten(-1, (rows, columns)), -2), -1)
