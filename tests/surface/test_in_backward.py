"""step_in_backward: the bits of ordinary steps, no gradients left, and clear words where it cannot be."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from helpers import assert_same_bits, everything
from inventory import RICH
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from lrtricks_fused import SGD, Adam, LossGrad, step_in_backward


class Model(nn.Module):
    """Tied weights, a frozen parameter, one that only some inputs use, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(8), requires_grad=False)
        self.rare, self.unused = nn.Linear(8, 8, bias=False), nn.Parameter(torch.randn(3))

    def forward(self, inputs, rare=False):
        hidden = torch.tanh(checkpoint(self.first, inputs, use_reentrant=False))
        hidden = self.second(hidden) + self.frozen
        return self.rare(hidden) if rare else hidden


def groups(model):
    weights = [param for param in model.parameters() if param.dim() > 1]
    return [{"params": weights}, {"params": [param for param in model.parameters() if param.dim() < 2], "lr": 0.02}]


def batch(number):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(number))


def train(model, optimizer, steps, n=1, in_backward=False, scheduler=None):
    """Steps of ``n`` passes each, of which one uses the rare parameter."""
    for step in steps:
        for number in range(n):
            model(batch(step * n + number), rare=number == step % n).square().mean().backward()
        if in_backward:
            assert all(param.grad is None for param in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def both(make, run):
    """What an ordinary run and one with steps in backward end with."""
    results = []
    for in_backward in (False, True):
        model = Model()
        optimizer = make(groups(model))
        if in_backward:
            with step_in_backward(model, optimizer, n=run.get("n", 1)):
                train(model, optimizer, range(5), in_backward=True, **run)
        else:
            train(model, optimizer, range(5), **run)
        results.append(everything(optimizer))
    return results


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
def test_the_bits_are_those_of_ordinary_steps(case, n):
    assert_same_bits(*both(lambda params: case.make(params, keep_prob=0.5), {"n": n}))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_backends(dtype, backend):
    results = []
    for in_backward in (False, True):
        model = nn.Linear(40, 30).to(dtype)
        nn.init.ones_(model.weight)
        nn.init.ones_(model.bias)
        optimizer = Adam(model.parameters(), keep_prob=0.5, centralize=True, backend=backend)
        handle = step_in_backward(model, optimizer) if in_backward else None
        for number in range(3):
            inputs = torch.randn(4, 40, generator=torch.Generator().manual_seed(number)).to(dtype)
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert handle is None or handle.remove() is None
        results.append(everything(optimizer))
    assert_same_bits(*results)


def test_a_scheduler_goes_on_without_a_warning():
    def run(in_backward):
        model = Model()
        optimizer = Adam(groups(model), keep_prob=0.5)
        scheduler = LambdaLR(optimizer, lambda epoch: 0.9**epoch)
        if in_backward:
            step_in_backward(model, optimizer)
        for number in range(4):
            model(batch(number)).square().mean().backward()
            if not in_backward:
                optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        return everything(optimizer)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(run(False), run(True))


def test_resuming_a_checkpoint_with_steps_in_backward():
    whole, parts = Model(), Model()
    optimizer = Adam(groups(whole), keep_prob=0.5)
    train(whole, optimizer, range(6))
    first = Adam(groups(parts), keep_prob=0.5)
    with step_in_backward(parts, first):
        train(parts, first, range(3), in_backward=True)
    saved = pickle.loads(pickle.dumps((parts.state_dict(), first.state_dict())))
    parts = Model()
    second = Adam(groups(parts), keep_prob=0.5)
    handle = step_in_backward(parts, second)
    parts.load_state_dict(saved[0])
    second.load_state_dict(saved[1])  # whose groups are other dictionaries from here on
    train(parts, second, range(3, 6), in_backward=True)
    handle.remove()
    assert_same_bits(everything(optimizer), everything(second))


def test_a_gradient_that_only_earlier_passes_have_is_stepped_after_the_last():
    model = Model()
    optimizer = SGD(groups(model), lr=0.1)
    before = model.rare.weight.detach().clone()
    with step_in_backward(model, optimizer, n=2):
        model(batch(0), rare=True).square().mean().backward()
        assert model.rare.weight.grad is not None and torch.equal(model.rare.weight, before)
        model(batch(1)).square().mean().backward()
        assert model.rare.weight.grad is None and not torch.equal(model.rare.weight, before)


def test_what_was_added_later_is_stepped_by_step():
    model = Model()
    optimizer = SGD([model.first.weight], lr=0.1)
    with step_in_backward(model, optimizer):
        optimizer.add_param_group({"params": [model.rare.weight]})
        before = model.rare.weight.detach().clone()
        model(batch(0), rare=True).square().mean().backward()
        assert torch.equal(model.rare.weight, before) and model.rare.weight.grad is not None
        optimizer.step()
        assert not torch.equal(model.rare.weight, before)
        assert model.first.bias.grad is not None  # which is not the optimizer's


def test_a_group_that_was_removed_keeps_its_gradients():
    model = Model()
    optimizer = SGD(groups(model), lr=0.1)
    with step_in_backward(model, optimizer):
        del optimizer.param_groups[1]
        model(batch(0)).square().mean().backward()
    assert model.first.bias.grad is not None and model.first.weight.grad is None


def test_a_step_in_the_middle_begins_anew():
    """``step()`` takes what has been accumulated, and the next passes are counted from there."""
    models = [Model(), Model()]
    optimizers = [SGD(groups(model), lr=0.1) for model in models]
    with step_in_backward(models[1], optimizers[1], n=2):
        for first in (True, False):
            for number in range(1 if first else 2):
                for model in models:
                    model(batch(number)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert_same_bits(*map(everything, optimizers))


def test_a_pass_that_fails_is_not_counted():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no gradient today")

    model = Model()
    optimizer = SGD(groups(model), lr=0.1)
    before = [tensor.clone() for tensor in everything(optimizer)]
    with step_in_backward(model, optimizer, n=2):
        with pytest.raises(RuntimeError, match="no gradient today"):
            model(Fails.apply(batch(0).requires_grad_())).square().mean().backward()
        optimizer.zero_grad()
        model(batch(1)).square().mean().backward()
        assert_same_bits(everything(optimizer), before)
        model(batch(2)).square().mean().backward()
        assert not torch.equal(model.first.weight, before[0])


def test_a_step_that_is_refused_leaves_its_parameter_and_its_gradient():
    model = nn.Linear(8, 8)
    optimizer = Adam(model.parameters())
    before = [param.detach().clone() for param in model.parameters()]
    with step_in_backward(model, optimizer):
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match=r"Invalid lr=-1\.0"):
            model(batch(0)).square().mean().backward()
    assert_same_bits([param.detach() for param in model.parameters()], before)
    assert not optimizer.state and any(param.grad is not None for param in model.parameters())


def test_removed_hooks_step_no_more():
    model = nn.Linear(8, 8)
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = step_in_backward(model, optimizer)
    handle.remove()
    other = step_in_backward(model, optimizer)
    handle.remove()  # which is not the other's
    with pytest.raises(ValueError, match="already"):
        step_in_backward(model, optimizer)
    other.remove()
    before = model.weight.detach().clone()
    model(batch(0)).square().mean().backward()
    assert torch.equal(model.weight, before) and model.weight.grad is not None


def test_copies_are_not_attached():
    model = nn.Linear(8, 8)
    optimizer = SGD(model.parameters(), lr=0.1)
    with step_in_backward(model, optimizer):
        twin, twins = copy.deepcopy((model, optimizer))
        before = twin.weight.detach().clone()
        twin(batch(0)).square().mean().backward()
        assert torch.equal(twin.weight, before)
        step_in_backward(twin, twins).remove()


def test_nothing_outlives_the_model():
    model = nn.Linear(8, 8)
    optimizer = SGD(model.parameters(), lr=0.1)
    step_in_backward(model, optimizer)
    model(batch(0)).square().mean().backward()
    gone = [weakref.ref(model.weight), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


class Reduced(nn.Module):
    """Stands in for a wrapper, which to make takes a process group."""


def test_what_cannot_be_is_refused(monkeypatch):
    model = nn.Linear(8, 8)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="Invalid optimizer of type LossGrad"):
        step_in_backward(model, LossGrad(optimizer))
    with pytest.raises(TypeError, match="Invalid optimizer of type SGD"):
        step_in_backward(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(TypeError, match="Invalid model of type list"):
        step_in_backward(list(model.parameters()), optimizer)
    with pytest.raises(ValueError, match=r"lacks a parameter of the optimizer, of shape \(8, 8\)"):
        step_in_backward(nn.Linear(8, 8), optimizer)
    with pytest.raises(ValueError, match="Invalid n=0"):
        step_in_backward(model, optimizer, n=0)
    with pytest.raises(TypeError, match=r"Invalid n=1\.5"):
        step_in_backward(model, optimizer, n=1.5)
    monkeypatch.setattr(nn.parallel.distributed, "DistributedDataParallel", Reduced)
    wrapper = Reduced()
    wrapper.module = model
    with pytest.raises(TypeError, match="DistributedDataParallel"):
        step_in_backward(wrapper, optimizer)
    with pytest.raises(TypeError, match="Invalid model: its DDP reduces gradients"):
        step_in_backward(replicate(copy.deepcopy(model)), optimizer)
    monkeypatch.setattr(optimizer, "max_norm", 1.0, raising=False)
    with pytest.raises(ValueError, match=r"Invalid max_norm=1\.0"):
        step_in_backward(model, optimizer)
    monkeypatch.setattr(optimizer, "max_norm", None)
    step_in_backward(model, optimizer).remove()  # none of these has left a mark


@pytest.mark.parametrize(
    "fused, words", [(True, "Invalid found_inf"), (None, "No inf checks")]
)  # the latter torch's own
def test_a_scaler_is_refused(fused, words):
    model = nn.Linear(8, 8)
    optimizer = Adam(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    with step_in_backward(model, optimizer):
        scaler.scale(model(batch(0)).square().mean()).backward()
        with pytest.raises((AssertionError, ValueError), match=words):
            scaler.step(optimizer)


@pytest.mark.parametrize("loads", [False, True])
def test_passes_begin_anew_where_what_was_accumulated_is_dropped(loads):
    results = []
    for in_backward in (False, True):
        model = Model()
        optimizer = Adam(groups(model), keep_prob=0.5)
        handle = step_in_backward(model, optimizer, n=2) if in_backward else None
        if in_backward:
            model(batch(9)).square().mean().backward()  # one of two passes, which is given up
            if loads:
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad()
        for number in range(4):
            model(batch(number)).square().mean().backward()
            if number % 2 and not in_backward:
                optimizer.step()
                optimizer.zero_grad()
        results.append(everything(optimizer))
        assert handle is None or handle.remove() is None
    assert_same_bits(*results)
