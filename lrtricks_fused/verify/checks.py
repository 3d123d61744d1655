"""The checks of `lrtricks verify`: each returns what is wrong, or None."""

import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy
import torch
from torch import Tensor

from .. import optim
from ..doctor import why_not
from .inventory import INTERPRETED, REFERENCE, RICH, SMALL, STRIDED, Storage, Target, Variant, Work
from .stepping import difference, gradients, make, make_both, mismatch, params_of, set_grads, take_step

SLEEP_CYCLES = 300_000_000  # of the GPU's clock: over 0.1 s, many times what the host needs for a few steps


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
    """<grad, displacement> of a step, which LOSSGRAD takes, to the bit; and the step that sums it."""
    work = INTERPRETED.get(work, work) if target.interpreted else work
    ours, expected = both = make_both(target, variant, work, **extra)
    for step in range(3):
        for optimizer in both:
            optimizer._slopes = {}
            take_step(optimizer, work, step)
        (slope,), (wanted,) = (optimizer._slopes.values() for optimizer in both)
        if text := difference(slope, wanted):
            return f"step {step}: {text}"
    return mismatch(ours, expected)


def check_overflow(target: Target, *, variant: Variant) -> str | None:
    """GradScaler: an overflow on the first step leaves everything as it was, step counts and keep bits included."""
    ours, expected = make_both(target, variant, SMALL)
    params = params_of(ours)
    before = [param.detach().clone() for param in params]
    scaler = torch.amp.GradScaler(target.device.type, init_scale=1024.0, growth_interval=10**6)
    for step in range(4):
        scale = float(scaler.scale(torch.ones((), device=target.device)))  # a power of two: dividing it out is exact
        set_grads(params, [grad * scale for grad in gradients(params, SMALL, step)])
        if step in (0, 2):
            params[1].grad[3] = float("inf")
        scaler.step(ours)
        scaler.update()
        if step not in (0, 2):
            take_step(expected, SMALL, step)
        if step == 0:
            for index, (param, old) in enumerate(zip(params, before, strict=True)):
                text = difference(param, old)
                moved = [name for name, state in ours.state.get(param, {}).items() if bool((state != 0).any())]
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


def _resume(saved: torch.optim.Optimizer, target: Target, storage: Storage) -> torch.optim.Optimizer:
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


def _make_capturable(target: Target, variant: Variant) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Both optimizers with every scalar a tensor on their device, a loss scaler's included."""
    accepts = "capturable" in inspect.signature(getattr(optim, variant.optimizer)).parameters
    both = make_both(target, variant, SMALL, **_scalars(), **({"capturable": True} if accepts else {}))
    for optimizer in both:
        device = params_of(optimizer)[0].device
        optimizer.grad_scale, optimizer.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
    return both


def _change_scalars(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the values of one step into the tensors; every third step overflows."""
    (group,) = optimizer.param_groups
    group["lr"].fill_(0.1 / (step + 1))
    group["keep_prob"].fill_((0.3, 1.0, 0.0, 0.7)[step % 4])
    group["grad_weight"].fill_(0.7 + step)
    optimizer.grad_scale.fill_(1.5 + step)
    optimizer.found_inf.fill_(float(step % 3 == 0))


def check_tensor_scalars(target: Target, *, variant: Variant) -> str | None:
    """Lr, keep_prob, grad_weight, grad_scale and found_inf as tensors on the device, changed between steps."""
    both = _make_capturable(target, variant)
    for step in range(7):
        for optimizer in both:
            _change_scalars(optimizer, step)
            take_step(optimizer, SMALL, step)
    return mismatch(*both)


def check_graph(target: Target, *, variant: Variant) -> str | None:
    """A captured step, replayed with new gradients and scalars, and eager steps in between."""
    both = ours, _ = _make_capturable(target, variant)
    params = params_of(ours)
    static = gradients(params, SMALL, 0)
    set_grads(params, static)

    def eager() -> None:
        set_grads(params, [grad.clone() for grad in static])
        ours.step()
        set_grads(params, static)

    return _replay(target, both, static, ours.step, eager)


def check_training_graph(target: Target, *, variant: Variant) -> str | None:
    """Forward, backward and step in one captured graph: its gradients are new memory, whose addresses it must enter."""
    both = ours, _ = _make_capturable(target, variant)
    params = params_of(ours)
    inputs = gradients(params, SMALL, 0)

    def train() -> None:
        ours.zero_grad(set_to_none=True)
        # The gradient of each parameter is the input beside it, to the bit.
        torch.stack([(param * x).sum() for param, x in zip(params, inputs, strict=True)]).sum().backward()
        ours.step()

    return _replay(target, both, inputs, train, train)


def _replay(
    target: Target,
    both: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    static: list[Tensor],  # the gradients of the captured step, or what they are copies of
    captured: Callable[[], Any],
    eager: Callable[[], Any],
) -> str | None:
    """Warm up, capture a step of the first optimizer, and replay it; the second steps as it should."""
    ours, expected = both
    params = params_of(ours)

    def prepare(step: int) -> None:
        for optimizer in both:
            _change_scalars(optimizer, step)
        for tensor, new in zip(static, gradients(params, SMALL, step), strict=True):
            tensor.copy_(new)
        take_step(expected, SMALL, step)

    with torch.cuda.device(target.device):
        side = torch.cuda.Stream()
        for step in range(3):  # as torch's documentation of CUDA graphs asks
            prepare(step)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                captured()
            torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):  # torch's own would be of the device that captured first
            captured()
        if text := mismatch(ours, expected):
            return f"after capture, which executes nothing: {text}"
        for step in range(3, 12):
            prepare(step)
            (eager if step in (6, 8) else graph.replay)()  # a step on other gradients must not disturb the graph
        torch.cuda.synchronize()
        return mismatch(ours, expected)


def check_side_stream(target: Target, *, variant: Variant) -> str | None:
    """A step belongs to the current stream: it waits for the gradients computed there."""
    ours, expected = make_both(target, variant, SMALL)
    params = params_of(ours)
    set_grads(params, [torch.zeros_like(param) for param in params])  # what a step that does not wait would find
    with torch.cuda.device(target.device):
        incoming = [gradients(params, SMALL, step) for step in range(3)]
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for grads in incoming:
                torch.cuda._sleep(SLEEP_CYCLES // 4)
                for param, grad in zip(params, grads, strict=True):
                    param.grad.copy_(grad)
                ours.step()
                for param in params:
                    param.grad.zero_()
        torch.cuda.synchronize()
    for step in range(3):
        take_step(expected, SMALL, step)
    return mismatch(ours, expected)


@contextmanager
def _synchronising_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _warmed_up(target: Target, variant: Variant) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer, list]:
    """Both optimizers after four steps that alternate between two sets of gradients, and the sets on the target."""
    ours, expected = _make_capturable(target, variant)
    params = params_of(ours)
    sets = [gradients(params, SMALL, step) for step in range(2)]
    for step in range(4):
        set_grads(params, sets[step % 2])
        ours.step()
        take_step(expected, SMALL, step % 2)
    return ours, expected, sets


def check_no_synchronisation(target: Target, *, variant: Variant) -> str | None:
    """A warmed-up step, on gradients that have moved or not, does not wait for the device."""
    with torch.cuda.device(target.device):
        ours, expected, sets = _warmed_up(target, variant)
        done = torch.cuda.Event()
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        done.record()
        with _synchronising_is_an_error():
            for step in (0, 1, 1):
                set_grads(params_of(ours), sets[step])
                ours.step()
        waited = done.query()  # what was enqueued before the steps has ended: they must have waited for it
        torch.cuda.synchronize()
    for step in (0, 1, 1):
        take_step(expected, SMALL, step)
    return "the step waited for the device" if waited else mismatch(ours, expected)


def check_no_allocation(target: Target, *, variant: Variant) -> str | None:
    """A warmed-up step, on gradients that have moved or not, asks torch for no device memory."""
    with torch.cuda.device(target.device):
        ours, expected, sets = _warmed_up(target, variant)
        counts = [_allocations(target)]
        for step in (0, 1, 1):
            set_grads(params_of(ours), sets[step])
            ours.step()
            counts.append(_allocations(target))
    for step in (0, 1, 1):
        take_step(expected, SMALL, step)
    made = [after - before for before, after in pairwise(counts)]
    return f"allocations in three steps: {made}" if any(made) else mismatch(ours, expected)


def _allocations(target: Target) -> int:
    return torch.cuda.memory_stats(target.device)["allocation.all.allocated"]
