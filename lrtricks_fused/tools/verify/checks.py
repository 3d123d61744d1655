"""The checks of `lrtricks verify`, but for cuda_checks.py: each returns what is wrong, or None."""

import inspect
import io
from typing import Any

import numpy
import torch
from torch import Tensor

from ... import optim
from ...optim.base import MaskedOptimizer
from ..doctor import why_not
from .inventory import INTERPRETED, REFERENCE, RICH, SMALL, STRIDED, Storage, Target, Variant, Work
from .stepping import difference, gradients, make, make_both, mismatch, params_of, set_grads, take_step


def check_backend(target: Target) -> str | None:
    """The backend can run on the device."""
    return why_not(target.backend, target.device)


def check_bits(target: Target, *, variant: Variant, work: Work, storage: Storage, keep_prob: float) -> str | None:
    """A few steps, bit for bit."""
    ours, expected = make_both(target, variant, work, storage, keep_prob=keep_prob)
    with numpy.errstate(all="ignore"):  # the reference takes roots of the special values
        for step in range(work.steps):
            take_step(ours, work, step)
            take_step(expected, work, step)
    return mismatch(ours, expected)


def check_groups(target: Target) -> str | None:
    """Several groups, dtypes and layouts in one optimizer, and parameters without a gradient."""
    work = Work("groups", (*SMALL.specs, *STRIDED.specs, *SMALL.specs))
    results = []
    for where in (target, REFERENCE):
        optimizer = make(where, RICH[1], work)
        params = params_of(optimizer)
        for param in params[8:]:
            param.data = param.data.to(torch.bfloat16)
        first, rest = params[:3], params[3:]
        optimizer.param_groups[0]["params"] = first
        optimizer.add_param_group({"params": rest[:4], "lr": 0.1, "keep_prob": 0.3, "weight_decay": 0.0, "seed": 7})
        optimizer.add_param_group({"params": rest[4:], "keep_prob": 1.0, "grad_weight": 2.5, "amsgrad": False})
        for step in range(4):
            set_grads(params, gradients(params, work, step))
            params[1].grad = None  # never has one
            if step % 2:
                params[5].grad = params[-1].grad = None  # sometimes
            optimizer.step()
        results.append(optimizer)
    return mismatch(*results)


def check_slope(target: Target, *, variant: Variant, work: Work = SMALL, **extra: Any) -> str | None:
    """<grad, displacement> of a step, which LOSSGRAD takes, its metrics, to the bit; and the step that sums them."""
    work = INTERPRETED.get(work, work) if target.interpreted else work
    ours, expected = both = make_both(target, variant, work, **extra)
    for step in range(3):
        told: list[Tensor] = []
        for optimizer in both:
            optimizer.track_metrics = step > 0  # alone, and with the others
            by_device: dict[torch.device, Tensor] = {}
            with optimizer.add_slopes_to(by_device):
                take_step(optimizer, work, step)
            (slope,) = by_device.values()
            told.append(torch.stack([slope, *(optimizer.metrics().values() if optimizer.track_metrics else ())]))
        sums, wanted = told
        if text := difference(sums, wanted):
            return f"step {step}: {text}"
    return mismatch(ours, expected)


def check_clip(target: Target, *, variant: Variant) -> str | None:
    """The norm of all gradients, to the bit, and the step that is clipped to it; the second of several dtypes."""
    for dtypes in ((None, None), (None, torch.bfloat16)):
        ours, expected = both = make_both(target, variant, SMALL, max_norm=0.5)
        for optimizer in both:
            for param, dtype in zip(params_of(optimizer), 4 * dtypes, strict=False):
                param.data = param.data.to(dtype or param.dtype)
        for step in range(3):
            for optimizer in both:
                vars(optimizer)["grad_scale"] = torch.full((), 1.5 + step, device=params_of(optimizer)[0].device)
                take_step(optimizer, SMALL, step)
            if text := difference(*(norm for optimizer in both if (norm := optimizer.grad_norm) is not None)):
                return f"step {step}: {text}"
        if text := mismatch(ours, expected):
            return text
    return None


def check_overflow(target: Target, *, variant: Variant) -> str | None:
    """GradScaler: an overflow on the first step leaves everything as it was, step counts and keep bits included."""
    ours, expected = make_both(target, variant, SMALL)
    params = params_of(ours)
    before = [param.detach().clone() for param in params]
    scaler = torch.amp.GradScaler(target.device.type, init_scale=1024.0, growth_interval=10**6)
    for step in range(4):
        scale = float(scaler.scale(torch.ones((), device=target.device)))  # a power of two: dividing it out is exact
        scaled = [grad * scale for grad in gradients(params, SMALL, step)]
        if step in (0, 2):
            scaled[1][3] = float("inf")
        set_grads(params, scaled)
        scaler.step(ours)
        scaler.update()
        if step not in (0, 2):
            take_step(expected, SMALL, step)
        if step == 0:
            for index, (param, old) in enumerate(zip(params, before, strict=True)):
                text = difference(param, old)
                moved = [
                    name
                    for name, state in ours.state.get(param, {}).items()
                    if name != "identity" and bool((state != 0).any())
                ]
                if text or moved:
                    return f"after an overflow on the first step: parameter {index} {text or ''} {moved or ''}"
    return mismatch(ours, expected)


def check_resume(target: Target, *, storage: Storage) -> str | None:
    """A state_dict continues where it was saved: on the target, from the CPU to it, and from it to the CPU."""
    ours, expected = make_both(target, RICH[1], SMALL, storage)
    for step in range(2):
        take_step(ours, SMALL, step)
        take_step(expected, SMALL, step)
    resumed = [_resume(ours, target, storage), _resume(expected, target, storage), _resume(ours, REFERENCE, storage)]
    for step in range(2, 4):
        for optimizer in (expected, *resumed):
            take_step(optimizer, SMALL, step)
    found = zip(("on the device", "from the CPU", "to the CPU"), resumed, strict=True)
    texts = [f"resumed {how}: {text}" for how, optimizer in found if (text := mismatch(optimizer, expected))]
    return texts[0] if texts else None


def _resume(saved: MaskedOptimizer, target: Target, storage: Storage) -> MaskedOptimizer:
    """A new optimizer on the target, with the saved one's parameters and state."""
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    optimizer = make(target, RICH[1], SMALL, storage)
    with torch.no_grad():
        for new, old in zip(params_of(optimizer), params_of(saved), strict=True):
            new.copy_(old)
    optimizer.load_state_dict(torch.load(file, map_location=target.device))
    return optimizer


def _scalars() -> dict[str, Tensor]:
    """Hyper-parameters as tensors, of both types a kernel reads."""
    return {
        "lr": torch.tensor(0.02),
        "keep_prob": torch.tensor(0.5, dtype=torch.float64),
        "grad_weight": torch.tensor(0.7, dtype=torch.float64),
    }


def make_capturable(target: Target, variant: Variant, **options: Any) -> tuple[MaskedOptimizer, MaskedOptimizer]:
    """Both optimizers with every scalar a tensor on their device, a loss scaler's included."""
    accepts = "capturable" in inspect.signature(getattr(optim, variant.optimizer)).parameters
    options = {**_scalars(), **options, **({"capturable": True} if accepts else {})}
    both = make_both(target, variant, SMALL, **options)
    for optimizer in both:
        device = params_of(optimizer)[0].device
        # As GradScaler enters them.
        vars(optimizer).update(grad_scale=torch.ones((), device=device), found_inf=torch.zeros((), device=device))
    return both


def change_scalars(optimizer: MaskedOptimizer, step: int) -> None:
    """Write the values of one step into the tensors; every third step overflows."""
    (group,) = optimizer.param_groups
    group["lr"].fill_(0.1 / (step + 1))
    group["keep_prob"].fill_((0.3, 1.0, 0.0, 0.7)[step % 4])
    group["grad_weight"].fill_(0.7 + step)
    vars(optimizer)["grad_scale"].fill_(1.5 + step)
    vars(optimizer)["found_inf"].fill_(float(step % 3 == 0))


def check_tensor_scalars(target: Target, *, variant: Variant) -> str | None:
    """Lr, keep_prob, grad_weight, grad_scale and found_inf as tensors on the device, changed between steps."""
    both = make_capturable(target, variant)
    for step in range(7):
        for optimizer in both:
            change_scalars(optimizer, step)
            take_step(optimizer, SMALL, step)
    return mismatch(*both)
