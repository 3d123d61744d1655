"""WNGrad and L4 against recurrences written out in Python floats, closed forms, and their own resumed runs."""

import copy
import itertools
import math

import pytest
import torch
from helpers import assert_same_bits, leaves, random_grads

from lrtricks_fused import L4Adam, L4Mom, WNGrad

F64 = torch.float64
L4S = [L4Mom, L4Adam]


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=F64, requires_grad=True)


def bits(optimizer: torch.optim.Optimizer) -> list:
    """Parameters, states and groups, exactly: bytes of tensors, repr of everything else."""
    saved = optimizer.state_dict()
    states = [(key, name, value) for key, state in saved["state"].items() for name, value in sorted(state.items())]
    params = [(0, "param", param) for group in optimizer.param_groups for param in group["params"]]
    exact = [
        (key, name, value.detach().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value))
        for key, name, value in params + states
    ]
    return [*exact, repr(saved["param_groups"])]


def quadratic(optimizer, param, curvature=1.0, offset=0.0):
    """Closure of f = curvature / 2 * |w|^2 + offset."""

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * curvature * param.square().sum() + offset
        loss.backward()
        return loss

    return closure


# -- WNGrad ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr, b0, decay", [(1.0, 1.0, 0.0), (0.3, 5.0, 0.0), (0.7, 0.25, 0.1)])
def test_wngrad_is_the_papers_recurrence(lr, b0, decay):
    w, b, curvature = 3.0, b0, 2.0
    param = scalar(w)
    optimizer = WNGrad([param], lr=lr, b0=b0, weight_decay=decay)
    closure = quadratic(optimizer, param, curvature)
    assert optimizer.b == b0
    for step in range(30):
        g = curvature * w + decay * w
        b = b if step == 0 else b + g * g / b  # w_{j+1} = w_j - g_j / b_j, then b_{j+1} = b_j + |g_{j+1}|^2 / b_j
        w = w - lr * g / b
        optimizer.step(closure)
        assert optimizer.b == pytest.approx(b, rel=1e-13)
        assert param.item() == pytest.approx(w, rel=1e-12, abs=1e-15)


def test_wngrads_first_step_divides_by_b0_alone():
    param = scalar(3.0)
    param.grad = torch.tensor([8.0], dtype=F64)
    WNGrad([param], b0=4.0).step()
    assert param.item() == 1.0  # and not 3 - 8 / (4 + 64 / 4)


def test_wngrad_with_constant_gradients_has_a_closed_form():
    # b' = b + c / b has b_j^2 = b0^2 + 2 c j + (sum of c^2 / b_i^2), so sqrt(2 c j) to leading order.
    param = scalar(0.0)
    optimizer = WNGrad([param], b0=1.0)
    param.grad = torch.tensor([2.0], dtype=F64)
    for _ in range(10_001):
        optimizer.step()
    assert optimizer.b == pytest.approx(math.sqrt(2 * 4.0 * 10_000), rel=1e-3)


def test_wngrads_step_size_never_rises():
    params = leaves((7,), (3, 2), (), dtype=F64)
    optimizer = WNGrad(params, b0=0.5)
    divisors = []
    for step in range(50):
        random_grads(params, step)
        optimizer.step()
        divisors.append(optimizer.b)
    assert divisors[0] == 0.5
    assert all(later > earlier for earlier, later in itertools.pairwise(divisors))


def test_wngrad_has_one_b_for_all_parameters_and_groups():
    whole = leaves((6,), dtype=F64)[0]
    first, second = (half.clone().requires_grad_() for half in whole.detach().split(3))
    one = WNGrad([whole], b0=2.0)
    two = WNGrad([{"params": [first]}, {"params": [second], "lr": 0.25}], b0=2.0)
    start = second.detach().clone()
    for step in range(2):
        random_grads([whole], step)
        first.grad, second.grad = whole.grad[:3].clone(), whole.grad[3:].clone()
        moved = whole.detach().clone()
        one.step()
        two.step()
        assert two.b == pytest.approx(one.b, rel=1e-15)
        torch.testing.assert_close(first, whole[:3])
        start = start + 0.25 * (whole.detach() - moved)[3:]
        torch.testing.assert_close(second.detach(), start)


def test_wngrads_lr_may_be_a_tensor_and_scheduled():
    param = scalar(1.0)
    optimizer = WNGrad([param], lr=torch.tensor(0.5), b0=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    param.grad = torch.ones(1, dtype=F64)
    optimizer.step()
    assert param.item() == 0.75
    scheduler.step()
    param.grad.fill_(2.0)
    optimizer.step()
    assert param.item() == 0.75 - 0.25 * 2 / (2 + 4 / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_wngrad_leaves_out_a_step_without_a_finite_norm(bad):
    param, other = scalar(1.0), scalar(2.0)
    optimizer = WNGrad([param, other], b0=2.0)
    param.grad, other.grad = torch.ones(1, dtype=F64), torch.ones(1, dtype=F64)
    optimizer.step()
    param.grad.fill_(bad)
    before = bits(optimizer)
    optimizer.step()
    assert bits(optimizer) == before


def test_wngrad_does_not_write_the_gradient_and_skips_missing_ones():
    param, frozen = leaves((3,), (2,))
    optimizer = WNGrad([frozen, param], weight_decay=0.5)
    optimizer.step()
    assert optimizer.b == 1.0 and "b" not in optimizer.state.get(frozen, {})
    random_grads([param], 0)
    grad, before = param.grad.clone(), frozen.detach().clone()
    optimizer.step()
    assert_same_bits([param.grad, frozen.detach()], [grad, before])
    assert not torch.equal(param, leaves((3,), (2,))[0])


# -- L4 ----------------------------------------------------------------------------------------------------


def l4_by_hand(kind, w, steps, *, alpha, gamma, init_factor, tau, beta1, beta2, eps, decay, curvature, offset):
    """(w, eta, Lmin) after each step, on f = curvature / 2 * w^2 + offset of one number."""
    m = s = 0.0
    lowest, out = None, []
    for t in range(1, steps + 1):
        f = 0.5 * curvature * w * w + offset
        g = curvature * w + decay * w
        lowest = init_factor * f if lowest is None else min(lowest, f)
        m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g * g
        estimate = m / (1 - beta1**t)
        v = estimate if kind is L4Mom else estimate / (math.sqrt(s / (1 - beta2**t)) + eps)
        eta = alpha * (f - gamma * lowest) / (estimate * v + 1e-12)
        w = w - eta * v
        lowest = (1 + 1 / tau) * lowest
        out.append((w, eta, lowest))
    return out


DEFAULTS = dict(alpha=0.15, gamma=0.9, init_factor=0.75, tau=1000.0, beta1=0.9, beta2=0.999, eps=1e-4)
OTHERS = dict(alpha=0.3, gamma=0.8, init_factor=0.5, tau=20.0, beta1=0.8, beta2=0.95, eps=0.01)


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("values", [DEFAULTS, OTHERS], ids=["defaults", "others"])
@pytest.mark.parametrize("kind", L4S)
def test_l4_is_the_authors_recurrence(kind, values, decay):
    param = scalar(2.0)
    options = {}
    if values is OTHERS:
        options = {name: values[name] for name in ("alpha", "gamma", "init_factor", "tau")}
        options |= {"beta": 0.8} if kind is L4Mom else {"betas": (0.8, 0.95), "eps": 0.01}
    optimizer = kind([param], weight_decay=decay, **options)
    closure = quadratic(optimizer, param, 3.0, offset=0.5)
    assert optimizer.step_size is None and optimizer.min_loss is None
    for w, eta, lowest in l4_by_hand(kind, 2.0, 40, decay=decay, curvature=3.0, offset=0.5, **values):
        optimizer.step(closure)
        assert param.item() == pytest.approx(w, rel=1e-10, abs=1e-12)
        assert optimizer.step_size == pytest.approx(eta, rel=1e-10)
        assert optimizer.min_loss == pytest.approx(lowest, rel=1e-12)


def test_first_l4mom_step_in_closed_form():
    # f = w^2 / 2 = 2, g = v = 2, Lmin = 1.5, eta = 0.15 (2 - 1.35) / 4
    param = scalar(2.0)
    optimizer = L4Mom([param])
    loss = optimizer.step(quadratic(optimizer, param))
    assert loss.item() == 2.0
    assert param.item() == pytest.approx(2 - 0.15 * 0.65 / 4 * 2, rel=1e-12)
    assert optimizer.min_loss == pytest.approx(1.5015, rel=1e-15)


@pytest.mark.parametrize("kind", L4S)
def test_l4s_inner_product_is_over_all_parameters(kind):
    whole = leaves((6,), dtype=F64)[0]
    parts = [part.clone().requires_grad_() for part in whole.detach().split(2)]
    one, many = kind([whole]), kind([{"params": parts[:1]}, {"params": parts[1:]}])

    def closure_of_parts():
        many.zero_grad()
        loss = 0.5 * torch.cat(parts).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        one.step(quadratic(one, whole))
        many.step(closure_of_parts)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)
        assert many.step_size == pytest.approx(one.step_size, rel=1e-12)


@pytest.mark.parametrize("kind", L4S)
def test_l4_does_not_depend_on_the_scale_of_the_loss(kind):
    # eps = 0: eta of L4Mom scales as 1 / loss, of L4Adam as 1 / 1 against a direction without scale.
    options = {} if kind is L4Mom else {"eps": 0.0}
    plain, scaled = scalar(2.0), scalar(2.0)
    one, other = kind([plain], **options), kind([scaled], **options)
    for _ in range(20):
        one.step(quadratic(one, plain))
        other.step(quadratic(other, scaled, 1000.0))
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-8)


@pytest.mark.parametrize("kind", L4S)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_changes_nothing(kind, bad):
    param = scalar(2.0)
    optimizer = kind([param])
    optimizer.step(quadratic(optimizer, param))
    before = bits(optimizer)
    loss = optimizer.step(lambda: torch.tensor(bad))
    assert loss.isnan() or loss == bad
    assert bits(optimizer) == before


@pytest.mark.parametrize("kind", L4S)
def test_a_negative_loss_is_refused_and_changes_nothing(kind):
    param = scalar(2.0)
    optimizer = kind([param])
    optimizer.step(quadratic(optimizer, param))
    before = bits(optimizer)
    with pytest.raises(ValueError, match=r"Invalid loss=-0.25: must be >= 0"):
        optimizer.step(lambda: -0.25)
    assert bits(optimizer) == before


@pytest.mark.parametrize("kind", L4S)
def test_l4_needs_the_loss(kind):
    with pytest.raises(TypeError, match="Invalid closure=None"):
        kind([scalar(1.0)]).step(None)


@pytest.mark.parametrize("kind", L4S)
def test_zero_loss_and_zero_gradient_stay_put(kind):
    param = scalar(0.0)
    optimizer = kind([param])
    optimizer.step(quadratic(optimizer, param))
    assert param.item() == 0.0 and optimizer.step_size == 0.0


def test_a_parameter_that_joins_late_is_debiased_by_its_own_count():
    early, late = scalar(1.0), scalar(1.0)
    optimizer = L4Mom([early, late])
    early.grad = torch.ones(1, dtype=F64)
    optimizer.step(lambda: 1.0)
    late.grad = torch.full((1,), 3.0, dtype=F64)
    before = late.item()
    optimizer.step(lambda: 1.0)
    # v is 3 at the late one's first step: 0.3 / 0.1
    assert before - late.item() == pytest.approx(3 * optimizer.step_size, rel=1e-12)
    assert optimizer.step_size == pytest.approx(0.15 * (1 - 0.9 * 0.75 * 1.001) / (1 + 9), rel=1e-9)


# -- all ---------------------------------------------------------------------------------------------------

MAKERS = {
    "wngrad": lambda params: WNGrad(params, lr=0.4, b0=3.0, weight_decay=0.01),
    "l4mom": lambda params: L4Mom(params, alpha=0.2, gamma=0.8, init_factor=0.6, tau=30.0, beta=0.7, weight_decay=0.01),
    "l4adam": lambda params: L4Adam(params, alpha=0.1, betas=(0.8, 0.98), eps=1e-3, weight_decay=0.01),
}


def run(optimizer, params, steps):
    for step in steps:

        def closure(step=step):
            random_grads(params, step)
            return 1.0 + 0.5 * math.sin(step)

        optimizer.step(closure)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_resumed_run_is_the_uninterrupted_one(name, dtype, tmp_path):
    params = leaves((5,), (2, 3), (), dtype=dtype)
    optimizer = MAKERS[name](params)
    run(optimizer, params, range(7))
    torch.save((params, optimizer.state_dict()), tmp_path / "checkpoint.pt")
    loaded, state_dict = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = type(optimizer)(loaded)  # hyper-parameters, too, come from the checkpoint
    resumed.load_state_dict(state_dict)
    scalars = {key: dict(state) for key, state in state_dict["state"].items()}
    run(optimizer, params, range(7, 15))
    run(resumed, loaded, range(7, 15))
    assert bits(resumed) == bits(optimizer)
    for key, state in state_dict["state"].items():  # the caller's dict is not the optimizer's
        assert all(state[name] is value for name, value in scalars[key].items())


@pytest.mark.parametrize("name", MAKERS)
def test_a_deep_copy_goes_its_own_way(name):
    params = leaves((5,))
    optimizer = MAKERS[name](params)
    run(optimizer, params, range(3))
    twin = copy.deepcopy(optimizer)
    before = bits(optimizer)
    assert bits(twin) == before
    run(twin, twin.param_groups[0]["params"], range(3, 6))
    assert bits(optimizer) == before != bits(twin)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: WNGrad(p, b0=-1), r"Invalid b0=-1: must be > 0"),
        (lambda p: WNGrad(p, b0=0.0), r"Invalid b0=0.0: must be > 0"),
        (lambda p: WNGrad(p, b0=math.nan), r"Invalid b0=nan"),
        (lambda p: WNGrad(p, lr=-0.1), r"Invalid lr=-0.1"),
        (lambda p: WNGrad(p, weight_decay=-0.1), r"Invalid weight_decay=-0.1"),
        (lambda p: WNGrad([{"params": p, "b0": 2.0}]), r"Invalid b0=2.0 of a group"),
        (lambda p: L4Mom([{"params": p, "alpha": 0.5}]), r"Invalid alpha=0.5 of a group"),
        (lambda p: L4Mom(p, beta=1.0), r"Invalid beta=1.0: must be in \[0, 1\)"),
        (lambda p: L4Adam(p, betas=(1.0, 0.9)), r"Invalid beta1=1.0"),
        (lambda p: L4Adam(p, betas=(0.9, -1.0)), r"Invalid beta2=-1.0"),
        (lambda p: L4Adam(p, eps=-1.0), r"Invalid eps=-1.0"),
        *[
            (lambda p, kind=kind, name=name, value=value: kind(p, **{name: value}), rf"Invalid {name}={value}")
            for kind in L4S
            for name, value in [
                ("alpha", 0.0), ("gamma", 1.5), ("gamma", -0.5), ("init_factor", 2.0), ("tau", 0),
                ("weight_decay", -1.0),
            ]
        ],
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(leaves((2,)))


@pytest.mark.parametrize("name", MAKERS)
def test_sparse_and_complex_are_refused_before_anything_changes(name):
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = MAKERS[name](table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step(lambda: 1.0)
    assert torch.equal(table.weight, before) and not optimizer.state
    number = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    number.grad = torch.ones_like(number)
    with pytest.raises(TypeError, match="complex64"):
        MAKERS[name]([number]).step(lambda: 1.0)


@pytest.mark.parametrize("name", MAKERS)
def test_they_minimise_a_quadratic(name):
    params = leaves((20,), dtype=F64)
    optimizer = MAKERS[name](params)
    start = params[0].square().sum().item()
    for _ in range(300):
        optimizer.step(quadratic(optimizer, params[0]))
    assert params[0].square().sum().item() < 0.05 * start
