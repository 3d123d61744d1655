"""An optimizer on a target with its gradients, and how two of them are compared."""

from typing import Any

import torch
from torch import Tensor

from ... import optim
from ...optim.base import MaskedOptimizer
from .inventory import F32, REFERENCE, SEED, Storage, Target, Variant, Work

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def make(target: Target, variant: Variant, work: Work, storage: Storage = F32, **extra: Any) -> MaskedOptimizer:
    """The variant over the work's parameters, on the target; scalars that are tensors are copied there."""
    options = dict(lr=0.02, keep_prob=0.5, grad_weight=0.7, seed=SEED) | variant.options | extra
    options = {
        key: value.to(target.device, copy=True) if isinstance(value, Tensor) else value
        for key, value in options.items()
    }
    params = [
        spec.param(work.values(spec.shape, storage.dtype, index).to(target.device)).requires_grad_()
        for index, spec in enumerate(work.specs)
    ]
    optimizer = getattr(optim, variant.optimizer)
    return optimizer(params, backend=target.backend, state_dtype=storage.state_dtype, **options)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters, in state_dict order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def gradients(params: list[Tensor], work: Work, step: int) -> list[Tensor]:
    """New gradients of one step, in the work's layouts, on the parameters' devices."""
    return [
        spec.grad(work.values(spec.shape, param.dtype, 1000 * (step + 1) + index).to(param.device))
        for index, (param, spec) in enumerate(zip(params, work.specs, strict=True))
    ]


def set_grads(params: list[Tensor], grads: list[Tensor]) -> None:
    """Enter the gradients."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def take_step(optimizer: MaskedOptimizer, work: Work, step: int) -> None:
    """One step with the gradients of the given number."""
    params = params_of(optimizer)
    set_grads(params, gradients(params, work, step))
    optimizer.step()


def make_both(target: Target, *args: Any, **extra: Any) -> tuple[MaskedOptimizer, MaskedOptimizer]:
    """The same optimizer on the target and as the reference."""
    return make(target, *args, **extra), make(REFERENCE, *args, **extra)


def difference(got: Tensor, want: Tensor) -> str | None:
    """Where the bits differ first, or None; any NaN equals any NaN, because IEEE does not fix their payload."""
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}"
    got, want = (tensor.detach().cpu().contiguous().flatten() for tensor in (got, want))
    integer = _INTEGER[got.element_size()]
    wrong = (got.view(integer) != want.view(integer)) & ~(got.isnan() & want.isnan())
    if not wrong.any():
        return None
    i = int(wrong.nonzero()[0])
    return f"{int(wrong.sum())} of {wrong.numel()} elements differ; element {i} is {_hex(got[i])}, not {_hex(want[i])}"


def _hex(number: Tensor) -> str:
    return float(number).hex() if number.isfinite() else str(float(number))


def mismatch(ours: MaskedOptimizer, expected: MaskedOptimizer) -> str | None:
    """The first difference of parameters and states, or None."""
    for index, (mine, theirs) in enumerate(zip(params_of(ours), params_of(expected), strict=True)):
        state, wanted = ours.state.get(mine, {}), expected.state.get(theirs, {})
        if state.keys() != wanted.keys():
            return f"parameter {index} has states {sorted(state)}, expected {sorted(wanted)}"
        for name in ("step", *sorted(wanted.keys() - {"step"}), "param"):
            got, want = (mine, theirs) if name == "param" else (state.get(name), wanted.get(name))
            text = None if want is None else difference(torch.as_tensor(got), torch.as_tensor(want))
            if text:
                return f"parameter {index} of shape {tuple(mine.shape)}, {name}: {text}"
    return None
