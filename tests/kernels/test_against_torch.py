"""keep_prob=1 against the torch.optim class of the same name, within the inventory's tolerances.

Hyper-parameters: our inventory, and the samples of torch's own inventory of optimizers.
"""

import copy

import pytest
import torch
from helpers import SCALAR_STATES, clones, leaves, random_grads
from inventory import TOLERANCE, TWINS, implementations
from torch.testing._internal.common_optimizers import optim_db

import lrtricks_fused as lrt

pytestmark = pytest.mark.usefixtures("torch_numbers_float64")
STEPS = 10  # beyond RAdam's change of branch (step 6 for beta2 = .999)
SHAPES = [(7,), (), (64, 3), (1000,), (2, 3, 5, 5)]


def torch_samples():
    """(our class, twin, kwargs) of torch's inventory.

    On the CPU it holds no sparse, differentiable or capturable variants: we refuse the first two, and the third
    chooses nothing on the CPU.
    """
    for info in optim_db:
        ours = getattr(lrt, info.optim_cls.__name__, None)
        if ours is not None:
            for sample in info.optim_inputs_func(device="cpu"):
                assert not {"differentiable", "capturable"} & sample.kwargs.keys()
                yield ours, info.optim_cls, sample.kwargs


SAMPLES = [*((case.ours, case.twin, case.kwargs) for case in TWINS), *torch_samples()]
RUNS = [(ours, twin, kwargs, how) for ours, twin, kwargs in SAMPLES for how in implementations(twin, kwargs)]


def arguments(kwargs, dtype):
    """A copy with a tensor lr of the parameters' dtype: torch rounds 1 - lr * weight_decay to the lr's own."""
    return {k: v.to(dtype, copy=True) if isinstance(v, torch.Tensor) else copy.deepcopy(v) for k, v in kwargs.items()}


def label(value):
    if isinstance(value, type):
        return value.__module__.split(".")[0] + "." + value.__name__ if "lrt" in value.__module__ else ""
    return "-".join(f"{k}={v}" for k, v in value.items()) or "default"


def test_torchs_inventory_is_used():
    classes = [ours for ours, _, _ in torch_samples()]
    assert {cls.__name__ for cls in classes} == {name for name in lrt.optim.__all__ if hasattr(torch.optim, name)}
    assert len(classes) >= 30


def assert_close(ours, twin, dtype):
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours, twin, rtol=tolerance.rtol, atol=tolerance.atol, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("ours", "twin", "kwargs", "how"), RUNS, ids=label)
def test_unmasked_training_is_torchs(ours, twin, kwargs, how, dtype):
    mine, theirs = leaves(*SHAPES, dtype=dtype), leaves(*SHAPES, dtype=dtype)
    optimizers = ours(mine, **arguments(kwargs, dtype)), twin(theirs, **arguments(kwargs, dtype), **how)
    for step in range(STEPS):
        for params, optimizer in zip((mine, theirs), optimizers, strict=True):
            random_grads(params, step)
            optimizer.step()
    assert_close(mine, theirs, dtype)
    for a, b in zip(mine, theirs, strict=True):
        left, right = optimizers[0].state[a], optimizers[1].state[b]
        own = left.keys() - {"step", "identity"}
        assert own == {name for name, value in right.items() if value is not None} - {"step"}
        assert int(left["step"]) == int(right.get("step", STEPS)) == STEPS
        for name in own:
            assert_close(left[name], right[name], dtype)


@pytest.mark.parametrize("case", TWINS, ids=lambda c: c.name)
def test_gradient_weight_is_a_weighted_loss(case):
    mine, theirs = leaves(*SHAPES), leaves(*SHAPES)
    optimizer, twin = case.make(mine, grad_weight=0.3), case.make_twin(theirs)
    for step in range(STEPS):
        random_grads(mine, step)
        random_grads(theirs, step)
        for param in theirs:
            param.grad *= 0.3
        optimizer.step()
        twin.step()
    assert_close(mine, theirs, torch.float32)


def load_as_fp32(twin, optimizer):
    """Give the twin our states, in fp32, but let it keep its own hyper-parameters."""
    states = {
        index: {name: torch.as_tensor(value).to(torch.float32, copy=True) for name, value in state.items()}
        for index, state in optimizer.state_dict()["state"].items()
    }
    twin.load_state_dict({"state": states, "param_groups": twin.state_dict()["param_groups"]})


@pytest.mark.parametrize("state_dtype", [torch.float32, None], ids=["fp32_states", "16_bit_states"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", TWINS, ids=lambda c: c.name)
def test_16_bit_parameters_step_as_rounded_fp32(case, dtype, state_dtype):
    # torch itself rounds to 16 bits after every operation. The twin therefore steps an fp32 copy, from our states.
    if dtype == torch.float16 and state_dtype is None and case.kwargs.get("eps", 1e-8) == 1e-8:
        pytest.skip("squares of fp16 states underflow and eps=1e-8 does not hold the quotient: inf, by any formula")
    mine = clones([param.to(dtype) for param in leaves((900,), (7, 3))])
    optimizer = case.make(mine, state_dtype=state_dtype or dtype)
    for step in range(STEPS):
        theirs = clones([param.float() for param in mine])
        twin = case.make_twin(theirs)
        load_as_fp32(twin, optimizer)
        random_grads(mine, step)
        for a, b in zip(mine, theirs, strict=True):
            b.grad = a.grad.float()
        optimizer.step()
        twin.step()
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a.detach(), b.detach().to(dtype), dtype)
            for name in optimizer.state[a].keys() - SCALAR_STATES:
                left, right = optimizer.state[a][name], twin.state[b][name]
                assert_close(left, right.to(left.dtype), left.dtype)
