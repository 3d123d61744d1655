"""What is done on a GPU by torch's operations waits for nothing, and reads nothing that has not arrived."""

import itertools

import pytest
import torch
from fake_gpu import GPU, fake_gpu
from torch.utils._python_dispatch import TorchDispatchMode

from lrtricks_fused.optim.sums import StepSums, metrics
from lrtricks_fused.step import staged
from lrtricks_fused.step.call import SUMS, StepCall, Storage
from lrtricks_fused.step.sums import add_totals
from lrtricks_fused.tuning import lossgrad

BF16 = torch.bfloat16
SHAPES = ((5, 130), (3,), (0,))


def test_the_copies_that_wait_are_seen():
    with fake_gpu() as gpu:
        here, there = torch.ones(2), torch.ones(2, device=gpu)
        for forbidden in (
            lambda: torch.tensor([1, 2], device=gpu),
            lambda: there.new_tensor([1.0]),
            lambda: here.to(gpu),
            lambda: there.copy_(here),
            lambda: there.cpu(),
            lambda: there.to("cpu", non_blocking=True),
            lambda: there.sum().item(),
        ):
            with pytest.raises(AssertionError):
                forbidden()
        _ = there * 2 + there.new_full((), 3.0)
    with fake_gpu(may_wait=True) as gpu:
        torch.ones(2, device=gpu).cpu()
        with pytest.raises(AssertionError, match="may not have arrived"):
            torch.ones(2, device=gpu).to("cpu", non_blocking=True)


def call_on(gpu, dtype, storage, **options):
    params = [torch.zeros(shape, dtype=dtype, device=gpu) for shape in SHAPES]

    def number(value):
        return torch.full((), value, dtype=torch.float64, device=gpu)

    given = dict(
        rule="sgd", params=params, grads=[torch.zeros_like(p) for p in params],
        states={"momentum_buffer": [torch.zeros_like(p) for p in params]}, steps=[number(0.0) for _ in params],
        param_indices=[0, 1, 2], hyper=dict(momentum=0.9, dampening=0.0, nesterov=False), lr=0.1, weight_decay=0.0,
        decoupled_weight_decay=False, maximize=False, keep_prob=0.5, grad_weight=1.0, seed=0,
        grad_scale=number(2.0), found_inf=number(0.0), storage=storage(params, gpu),
    )  # fmt: skip
    return StepCall(**given | options)


STORED = {
    "split": (BF16, lambda params, gpu: Storage(lows=[torch.zeros_like(p, dtype=torch.int16) for p in params])),
    "mirrors": (torch.float32, lambda params, gpu: Storage(mirrors=[torch.zeros_like(p, dtype=BF16) for p in params])),
    "rounded": (BF16, lambda params, gpu: Storage(stochastic=True, stochastic_states=True)),
    "changes": (
        torch.float64,
        lambda params, gpu: Storage(
            changes=[torch.zeros(-(-p.numel() // 8), dtype=torch.uint8, device=gpu) for p in params]
        ),
    ),
}


@pytest.mark.parametrize("numbers", ["floats", "on the CPU", "on the GPU"])
@pytest.mark.parametrize("sums", [None, 1, len(SUMS)])
@pytest.mark.parametrize("kind", STORED)
def test_staged_steps(kind, sums, numbers, monkeypatch):
    monkeypatch.setattr(staged, "shares_memory", lambda call: False)  # fakes have no addresses
    dtype, storage = STORED[kind]
    with fake_gpu() as gpu:
        call = call_on(gpu, dtype, storage)
        call.sums = None if sums is None else torch.zeros(sums, dtype=torch.float64, device=gpu)
        if numbers != "floats":
            at = gpu if numbers == "on the GPU" else "cpu"
            call.keep_prob, call.grad_scale = (torch.full((), 0.5, device=at) for _ in range(2))
            call.found_inf = torch.zeros((), device=at)
        staged.step_staged(call, lambda working: None)


@pytest.mark.parametrize("name", ["keep_prob", "grad_scale", "found_inf"])
def test_numbers_on_the_cpu_are_read_there(name):
    # With numbers, which the fake has none of.
    for value in (0.25, 0.0):
        results = []
        for given in (torch.tensor(value), torch.tensor(value, dtype=torch.float64)):
            call = call_on(torch.device("cpu"), torch.float32, lambda *_: None, **{name: given})
            call.sums = torch.zeros(len(SUMS), dtype=torch.float64)
            with staged.measured(call) as plain:
                assert plain.sums is None
                for param in call.params:
                    param.add_(1.0)
            results.append(call.sums.tolist())
        assert repr(results[0]) == repr(results[1])
        assert results[0][1] > 0 or value == 0.0 or name == "found_inf"


def test_metrics_and_slopes():
    with fake_gpu() as gpu:
        call = call_on(gpu, torch.float32, lambda *_: None)
        call.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=gpu)
        with staged.measured(call):
            pass
        metrics(call.sums)
        slopes = {}
        summed = StepSums(slopes, metrics=True)
        call.sums = summed.of(call.params[0])
        add_totals(call, [torch.zeros(len(SUMS) - 1, 3, dtype=torch.float64, device=gpu)] * 3)
        summed.finish()
    assert list(slopes) == [gpu]


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_metrics_are_summed_in_few_launches():
    # Some 2,700 of these three parameters where each sum was made by itself.
    call = call_on(GPU, torch.float32, lambda *_: None)
    call.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=GPU)
    with Operations() as operations, staged.measured(call):
        pass
    assert operations.count < 700


@pytest.mark.parametrize("places", list(itertools.product(["gpu", "cpu"], repeat=3)), ids="-".join)
def test_what_lossgrad_moves_to_the_cpu_is_waited_for(places):
    with fake_gpu(may_wait=True) as gpu:
        loss, slope, lr = (torch.ones((), dtype=torch.float64, device=gpu if at == "gpu" else "cpu") for at in places)
        if loss.device.type == "cpu" != slope.device.type:
            slope = lossgrad.moved(slope, loss.device)
        elif loss.device != slope.device:
            return  # what is on the GPU must not be asked to come from the CPU
        if lr.device.type == "meta" != loss.device.type:
            return
        lossgrad._adapt(loss, loss, slope, [lr], 1.05, 1e-15)


def test_nothing_of_lossgrad_waits_on_one_gpu():
    with fake_gpu() as gpu:
        number = torch.ones((), dtype=torch.float64, device=gpu)
        lossgrad._adapt(number, number, number, [number.clone()], 1.05, 1e-15)
