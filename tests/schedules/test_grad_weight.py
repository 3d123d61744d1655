"""The gradient's weight on our optimizers and on torch's, against gradients weighted by hand and closed forms."""

import math

import pytest
import torch
from helpers import assert_same_bits, everything, leaves, random_grads, same_bits, train
from inventory import RICH

import lrtricks_fused as lrt

SEED = 0x123456789ABCDEF0
by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both = pytest.mark.parametrize("module", [lrt, torch.optim], ids=["ours", "torch"])
F64 = dict(rtol=1e-12, atol=1e-14)  # a few float64 roundings apart
HALVES = lrt.piecewise((0.25, 0.5, 0.75), (2.0, 0.5, 0.25, 4.0))  # powers of two: weights without rounding


def run(optimizer, weights, steps):
    """Train with the gradients of steps, one weights.step() after each."""
    for step in range(steps):
        train(optimizer, range(step, step + 1))
        weights.step()


# -- the count ---------------------------------------------------------------------------------------------------------


@both
def test_progress_is_that_of_epochs_counted_from_0_and_stays_at_the_end(module):
    seen = []

    def schedule(progress):
        seen.append(progress)
        return 2 * (1 - progress)

    weights = lrt.GradientWeight(module.SGD(leaves((3,))), schedule, 4)
    values = [weights.get_last_value()]
    for _ in range(6):
        weights.step()
        values.append(weights.get_last_value())
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert values == [2, 1.5, 1, 0.5, 0, 0, 0]


@by_name
def test_the_groups_of_our_optimizers_get_it_and_a_tensor_stays_the_same(case):
    params = leaves((5,), (7,))
    tensor = torch.tensor(1.0, dtype=torch.float64)
    optimizer = case.make([{"params": params[:1], "grad_weight": tensor}, {"params": params[1:], "grad_weight": 3.0}])
    weights = lrt.GradientWeight(optimizer, lrt.linear(start=3, end=1), 4)
    for value in (3.0, 2.5, 2.0, 1.5, 1.0, 1.0):
        assert [float(group["grad_weight"]) for group in optimizer.param_groups] == [value, value]
        assert optimizer.param_groups[0]["grad_weight"] is tensor
        assert type(optimizer.param_groups[1]["grad_weight"]) is float
        weights.step()


@by_name
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_it_is_the_weighted_gradient_and_nothing_else(case, backend):
    # Weight decay, learning rate and masks stay: the same as gradients scaled by hand (powers of two: bit for bit).
    params, twins = leaves((700,), (4, 3)), leaves((700,), (4, 3))
    optimizer = case.make(params, backend=backend, keep_prob=0.5, seed=SEED, weight_decay=0.3)
    by_hand = case.make(twins, backend=backend, keep_prob=0.5, seed=SEED, weight_decay=0.3)
    weights = lrt.GradientWeight(optimizer, HALVES, 8)
    for step, weight in enumerate([2, 2, 0.5, 0.5, 0.25, 0.25, 4, 4, 4]):
        random_grads(twins, step)
        for twin in twins:
            twin.grad *= weight
        by_hand.step()
        train(optimizer, range(step, step + 1))
        weights.step()
    assert_same_bits(everything(optimizer), everything(by_hand))


# -- torch's optimizers ------------------------------------------------------------------------------------------------

TORCHS = {
    "SGD": dict(lr=0.03, momentum=0.8, weight_decay=0.3),
    "Adam": dict(lr=0.02, betas=(0.8, 0.95), weight_decay=0.3),
    "AdamW": dict(lr=0.02, weight_decay=0.3, amsgrad=True),
    "RMSprop": dict(lr=0.01, alpha=0.9, momentum=0.8, weight_decay=0.3),
}


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_optimizers_go_the_way_of_ours(name):
    results = []
    for module in (lrt, torch.optim):
        params = leaves((300,), (4, 3), dtype=torch.float64)
        optimizer = getattr(module, name)(params, **TORCHS[name])
        run(optimizer, lrt.GradientWeight(optimizer, lrt.linear(start=3, end=0.3), 5), 8)
        results.append(params)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **F64)


def test_grad_is_changed_in_place_and_only_where_there_is_one():
    params = leaves((300,), (4,), (5,))
    optimizer = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    weights = lrt.GradientWeight(optimizer, lrt.constant(0.5), 3)
    random_grads(params, 0)
    params[1].grad = None
    params[2].grad = params[2].grad.bfloat16().to(torch.float32)
    held, before = [params[0].grad, params[2].grad], [params[0].grad.clone(), params[2].grad.clone()]
    optimizer.step()
    assert params[1].grad is None
    assert params[0].grad is held[0] and params[2].grad is held[1]
    assert_same_bits(held, [grad * 0.5 for grad in before])
    weights.step()
    for param in params:
        param.grad = None
    optimizer.step()


def test_a_gradient_that_two_parameters_share_is_weighted_once():
    params = leaves((3,), (3,))
    lrt.GradientWeight(optimizer := torch.optim.SGD(params), lrt.constant(0.5), 3)
    params[0].grad = params[1].grad = torch.ones(3)
    optimizer.step()
    assert params[0].grad.tolist() == [0.5] * 3


def test_sparse_gradients():
    table = torch.nn.Embedding(6, 2, sparse=True, dtype=torch.float64)
    start = table.weight.detach().clone()
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    lrt.GradientWeight(optimizer, lrt.constant(0.3), 3)
    table(torch.tensor([1, 4, 4])).sum().backward()
    optimizer.step()
    moved = torch.zeros(6, 2, dtype=torch.float64)
    moved[1], moved[4] = 0.1 * 0.3, 0.1 * 0.3 * 2
    torch.testing.assert_close(table.weight.detach(), start - moved, **F64)


@both
@pytest.mark.parametrize("by_keyword", [False, True])
def test_the_closures_gradients_are_weighted_and_its_loss_is_returned_as_it_is(module, by_keyword):
    (param,) = leaves((4,), dtype=torch.float64)
    start = param.detach().clone()
    optimizer = module.SGD([param], lr=0.1)
    lrt.GradientWeight(optimizer, lrt.constant(0.5), 3)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
    assert len(calls) == 1
    assert loss.item() == (start**2).sum().item()
    torch.testing.assert_close(param.detach(), start * (1 - 0.1 * 0.5 * 2), **F64)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_sees_the_weighted_loss_and_its_gradients(line_search):
    def make():
        (param,) = leaves((6,), dtype=torch.float64)
        return param, torch.optim.LBFGS([param], lr=0.5, max_iter=7, line_search_fn=line_search)

    def closure(param, optimizer, weight=1.0):
        optimizer.zero_grad()
        loss = weight * (((param - 1) ** 4).sum() + (param[1:] * param[:-1]).sum() ** 2)
        loss.backward()
        return loss

    ours, by_hand = make(), make()
    weights = lrt.GradientWeight(ours[1], HALVES, 4)
    for weight in (2.0, 0.5, 0.25):
        loss = ours[1].step(lambda: closure(*ours))
        wanted = by_hand[1].step(lambda weight=weight: closure(*by_hand, weight))
        assert same_bits(ours[0], by_hand[0])
        assert loss.item() == wanted.item()
        weights.step()


# -- closed forms ------------------------------------------------------------------------------------------------------


@both
def test_momentum_buffer_is_the_papers_sum(module):
    # buf_t = sum_i mu^(t - i) s_i g_i, which a scaled learning rate does not give.
    momentum, steps = 0.8, 9
    (param,) = leaves((300,), dtype=torch.float64)
    optimizer = module.SGD([param], lr=0.03, momentum=momentum)
    weights = lrt.GradientWeight(optimizer, lrt.linear(start=2, end=0.1), 7)
    run(optimizer, weights, steps)
    total = torch.zeros(300, dtype=torch.float64)
    for i in range(steps):
        random_grads([param], i)
        s = 2 - 1.9 * min(i / 7, 1)
        total += momentum ** (steps - 1 - i) * s * param.grad
    torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], total, **F64)


@pytest.mark.parametrize("weight", [4.0, 0.125, 0.3])
@pytest.mark.parametrize("cls", [lrt.Adam, lrt.AdamW, lrt.RMSprop])
def test_a_constant_weight_changes_nothing_in_scale_free_rules_without_eps(cls, weight):
    results = []
    for schedule in (lrt.constant(1.0), lrt.constant(weight)):
        (param,) = leaves((700,), dtype=torch.float64)
        kwargs = dict(betas=(0.8, 0.95)) if cls is not lrt.RMSprop else dict(alpha=0.9)
        decay = 0.3 if cls is lrt.AdamW else 0.0  # a coupled decay would not be scaled with the gradient
        optimizer = cls([param], lr=0.02, eps=0.0, weight_decay=decay, keep_prob=0.5, **kwargs)
        run(optimizer, lrt.GradientWeight(optimizer, schedule, 5), 8)
        results.append(param.detach())
    if math.frexp(weight)[0] == 0.5:  # a power of two scales both moments without rounding
        assert same_bits(*results)
    else:
        torch.testing.assert_close(*results, **F64)


def test_weight_decay_is_not_scaled():
    (param,) = leaves((50,), dtype=torch.float64)
    start = param.detach().clone()
    optimizer = lrt.SGD([param], lr=0.1, weight_decay=0.3)
    lrt.GradientWeight(optimizer, lrt.linear(start=0.0, end=1.0), 4)
    train(optimizer, range(1))  # at weight 0 only the decay moves
    torch.testing.assert_close(param.detach(), start * (1 - 0.1 * 0.3), **F64)
