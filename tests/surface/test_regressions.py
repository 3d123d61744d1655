"""Mistakes of existing LRD codes, one test each (spec 1.3, 1.4, 1.6, 2.1 and 7).

Native and reference alike.
"""

import math

import pytest
import torch
from helpers import Snapshot, clones, everything, leaves, random_grads, same_bits, train
from inventory import CASES, CLASSES, RICH

import lrtricks_fused as lrt

pytestmark = pytest.mark.parametrize("backend", ["native", "reference"])
by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
MU, LR = 0.9, 0.1


def constant(param, value):
    param.grad = torch.full_like(param, value)


def test_the_momentum_of_dropped_elements_accumulates(backend):
    # Masking the buffer (p=0 for n steps) would lose it: then the step at p=1 must be lr * full momentum, Eq. 8.
    (param,) = leaves((1500,), dtype=torch.float64)
    start = param.detach().clone()
    optimizer = lrt.SGD([param], lr=LR, momentum=MU, keep_prob=0.0, backend=backend)
    for _ in range(9):
        constant(param, 2.0)
        optimizer.step()
    assert same_bits(param, start)
    optimizer.param_groups[0]["keep_prob"] = 1.0
    optimizer.step()
    momentum = 2.0 * (1 - MU**10) / (1 - MU)
    torch.testing.assert_close(start - param.detach(), torch.full_like(start, LR * momentum), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dampening", [0.0, 0.4])
def test_momentum_over_drop_intervals_is_equation_8(backend, dampening):
    # f linear, so the gradient is constant: every element moves by lr * m_t at its kept steps and by 0 otherwise.
    (param,) = leaves((4000,), dtype=torch.float64)
    wanted = param.detach().clone()
    optimizer = lrt.SGD([param], lr=LR, momentum=MU, dampening=dampening, keep_prob=0.3, backend=backend)
    for step in range(1, 21):
        constant(param, -1.5)
        optimizer.step()
        # m_1 = g; m_t = mu m_{t-1} + (1 - dampening) g
        momentum = -1.5 * (MU ** (step - 1) + (1 - dampening) * (1 - MU ** (step - 1)) / (1 - MU))
        wanted -= LR * momentum * optimizer.keep_mask(param, step).double()
    torch.testing.assert_close(param.detach(), wanted, rtol=1e-12, atol=1e-13)


@by_name
def test_keep_prob_0_moves_states_only(case, backend):
    params, twins = leaves((700,), (5, 3)), leaves((700,), (5, 3))
    optimizer = case.make(params, keep_prob=0.0, weight_decay=0.0, backend=backend)
    free = case.make(twins, keep_prob=1.0, weight_decay=0.0, backend=backend)
    start = clones(params)
    train(optimizer, range(3))
    train(free, range(3))
    for param, old, twin in zip(params, start, twins, strict=True):
        assert same_bits(param, old)
        assert not torch.equal(twin, old)
        for name, state in optimizer.state[param].items():
            # Without weight decay the states do not depend on the parameter, so on the mask neither.
            assert same_bits(state, free.state[twin][name])


@by_name
def test_states_do_not_depend_on_the_mask(case, backend):
    optimizers = [case.make(leaves((2000,)), keep_prob=p, weight_decay=0.0, backend=backend) for p in (0.2, 1.0)]
    for optimizer in optimizers:
        train(optimizer, range(4))
    left, right = (everything(optimizer)[1:] for optimizer in optimizers)
    assert len(left) > 1
    assert all(same_bits(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("case", [c for c in CASES if c.kwargs.get("decoupled_weight_decay") or c.ours is lrt.AdamW],
                         ids=lambda c: c.name)  # fmt: skip
def test_decoupled_decay_is_dropped_with_its_element(case, backend):
    (param,) = leaves((2000,))
    start = param.detach().clone()
    optimizer = case.make([param], keep_prob=0.5, weight_decay=0.3, backend=backend)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    mask = optimizer.keep_mask(param, 1)
    assert same_bits(param[~mask], start[~mask])
    # No gradient: only the decay moves, by exactly lr * weight_decay * p.
    lr = float(case.kwargs["lr"])
    torch.testing.assert_close(param[mask].detach(), start[mask] * (1 - lr * 0.3), rtol=3e-7, atol=0)
    optimizer.param_groups[0]["keep_prob"] = 0.0
    before = param.detach().clone()
    optimizer.step()
    assert same_bits(param, before)


def test_rmsprop_has_its_weight_decay_in_the_step(backend):
    # The authors' code takes grad * mask before weight decay: v sees it, the step does not.
    param = torch.full((3000,), 2.0, requires_grad=True)
    param.grad = torch.zeros_like(param)
    optimizer = lrt.RMSprop([param], lr=LR, alpha=0.75, eps=0.0, weight_decay=0.5, keep_prob=0.5, backend=backend)
    optimizer.step()
    mask = optimizer.keep_mask(param, 1)
    # g = 0.5 * 2 = 1, v = 0.25, step = lr * 1 / 0.5
    assert torch.equal(param, torch.where(mask, torch.tensor(2.0) - torch.tensor(LR) * 2, torch.tensor(2.0)))


def test_rmsprop_with_momentum_is_masked(backend):
    (param,) = leaves((3000,))
    optimizer = lrt.RMSprop([param], lr=LR, momentum=0.9, keep_prob=0.5, backend=backend)
    for step in range(1, 5):
        before = param.detach().clone()
        constant(param, 1.0)
        optimizer.step()
        assert torch.equal(param != before, optimizer.keep_mask(param, step))


def test_sgd_without_momentum_works(backend):
    (param,) = leaves((3000,))
    start = param.detach().clone()
    optimizer = lrt.SGD([param], lr=LR, keep_prob=0.5, backend=backend)
    constant(param, 1.0)
    optimizer.step()
    assert torch.equal(param, torch.where(optimizer.keep_mask(param, 1), start - LR, start))
    assert list(optimizer.state[param]) == ["step", "identity"]


def test_nesterov_is_honoured(backend):
    (param,) = leaves((100,), dtype=torch.float64)
    start = param.detach().clone()
    optimizer = lrt.SGD([param], lr=LR, momentum=MU, nesterov=True, keep_prob=1.0, backend=backend)
    for _ in range(2):
        constant(param, 1.0)
        optimizer.step()
    # buf: 1, 1.9; steps: 1 + .9 * 1, 1 + .9 * 1.9
    torch.testing.assert_close(start - param.detach(), torch.full_like(start, LR * (1.9 + 2.71)))


@by_name
def test_the_gradient_is_not_modified(case, backend):
    params = leaves((700,), (33, 5))
    optimizer = case.make(params, keep_prob=0.5, grad_weight=0.3, backend=backend)
    for step in range(3):
        random_grads(params, step)
        before, versions = [p.grad.clone() for p in params], [p.grad._version for p in params]
        optimizer.step()
        assert all(same_bits(p.grad, old) for p, old in zip(params, before, strict=True))
        assert versions == [p.grad._version for p in params]


@by_name
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_dropped_element_keeps_its_bits_whatever_its_gradient(case, poison, backend):
    # 0 * NaN is NaN: the write must be predicated, not multiplied by the mask.
    (param,) = leaves((3000,))
    start = param.detach().clone()
    optimizer = case.make([param], keep_prob=0.5, backend=backend)
    constant(param, poison)
    optimizer.step()
    mask = optimizer.keep_mask(param, 1)
    assert same_bits(param[~mask], start[~mask])
    unmasked = start.clone().requires_grad_()
    constant(unmasked, poison)
    case.make([unmasked], keep_prob=1.0, backend=backend).step()
    assert same_bits(param[mask], unmasked[mask]) and not same_bits(param[mask], start[mask])


def test_eps_0_with_zero_gradient_poisons_kept_elements_only(backend):
    for cls in (lrt.Adam, lrt.RMSprop):
        (param,) = leaves((3000,))
        start = param.detach().clone()
        optimizer = cls([param], eps=0.0, keep_prob=0.5, backend=backend)
        constant(param, 0.0)
        optimizer.step()
        mask = optimizer.keep_mask(param, 1)
        assert same_bits(param[~mask], start[~mask])
        assert param[mask].isnan().all()  # 0 / 0, as torch.optim


@pytest.mark.parametrize("cls", CLASSES)
def test_zero_gradients_move_nothing(cls, backend):
    (param,) = leaves((700,))
    start = param.detach().clone()
    optimizer = cls([param], lr=LR, weight_decay=0.0, keep_prob=0.5, backend=backend)
    for _ in range(7):  # RAdam's both branches
        constant(param, 0.0)
        optimizer.step()
    assert same_bits(param, start)


def test_the_first_buffer_is_the_undampened_gradient(backend):
    (param,) = leaves((700,))
    optimizer = lrt.SGD([param], lr=LR, momentum=MU, dampening=0.5, weight_decay=0.0, keep_prob=0.5, backend=backend)
    random_grads([param], 1)
    optimizer.step()
    buffer = optimizer.state[param]["momentum_buffer"]
    assert torch.equal(buffer, param.grad)
    before, grad = buffer.clone(), param.grad.clone()
    optimizer.step()
    torch.testing.assert_close(buffer, MU * before + 0.5 * grad)


@pytest.mark.parametrize("cls", [lrt.Adam, lrt.AdamW, lrt.RMSprop])
@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_scale_free_rules_ignore_a_constant_gradient_weight(cls, weight, backend):
    # Powers of two scale exactly: then even the bits agree. eps = 0, since the weight changes only its role.
    results = []
    for grad_weight in (1.0, weight):
        (param,) = leaves((2000,), dtype=torch.float64)
        optimizer = cls([param], eps=0.0, weight_decay=0.0, keep_prob=0.5, grad_weight=grad_weight, backend=backend)
        train(optimizer, range(6))
        results.append(param.detach())
    if weight == 0.25:
        assert same_bits(*results)
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-14)


def test_sgdm_buffer_under_a_changing_gradient_weight(backend):
    # buf_t = sum_i mu^(t-i) s_i g_i, which scaling lr by s would not give. Weight decay is not scaled.
    (param,) = leaves((900,), dtype=torch.float64)
    optimizer = lrt.SGD([param], lr=0.0, momentum=MU, weight_decay=0.5, backend=backend)
    wanted = torch.zeros_like(param)
    for step in range(12):
        optimizer.param_groups[0]["grad_weight"] = 2 * (1 - step / 12)
        random_grads([param], step)
        wanted = MU * wanted + 2 * (1 - step / 12) * param.grad + 0.5 * param.detach()
        optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], wanted, rtol=1e-12, atol=1e-13)


def test_a_gradient_weight_of_0_leaves_momentum_and_decay(backend):
    (param,) = leaves((900,), dtype=torch.float64)
    start = param.detach().clone()
    optimizer = lrt.SGD([param], lr=LR, weight_decay=0.5, grad_weight=0.0, backend=backend)
    random_grads([param], 0)
    optimizer.step()
    torch.testing.assert_close(param.detach(), start * (1 - LR * 0.5))


@by_name
def test_amsgrads_maximum_and_all_else_advance_for_dropped_elements(case, backend):
    (param,) = leaves((700,))
    optimizer = case.make([param], keep_prob=0.0, backend=backend)
    train(optimizer, range(1))
    before = Snapshot(optimizer)
    train(optimizer, range(1, 2))
    for old, new, name in zip(
        before.tensors[1:], everything(optimizer)[1:], sorted(optimizer.state[param]), strict=True
    ):
        assert torch.equal(old, new) == (name == "identity")


def test_there_is_no_rescaling_by_1_over_p(backend):
    param = torch.zeros(100_000, requires_grad=True)
    constant(param, 1.0)
    lrt.SGD([param], lr=1.0, keep_prob=0.25, backend=backend).step()
    assert set(param.tolist()) == {0.0, -1.0}
    assert abs(float(param.detach().mean()) + 0.25) < 0.01


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, "split"])
@pytest.mark.parametrize("keep_prob", [0.5, 1.0])
@pytest.mark.parametrize("coupled", [True, False])
def test_a_decay_that_the_compute_type_rounds_to_0_is_none(backend, coupled, keep_prob, storage):
    # 0 * inf would be NaN, on some paths of kernels and not on others.
    dtype = storage if isinstance(storage, torch.dtype) else torch.bfloat16
    for n in (3, 512, 5000):
        (param,) = params = [torch.full((n,), math.inf, dtype=dtype).requires_grad_()]
        optimizer = (lrt.Adam if coupled else lrt.AdamW)(
            params, lr=LR, weight_decay=1e-46, keep_prob=keep_prob, backend=backend,
            master="split" if storage == "split" else None,
        )  # fmt: skip
        for _ in range(2):
            constant(param, 1.0)
            optimizer.step()
        assert torch.equal(param, torch.full_like(param, math.inf))
