"""The native ops themselves: torch.library.opcheck, and argument checks that come before any write.

What the Python classes check first is called here without them.
"""

import itertools

import pytest
import torch
from helpers import assert_same_bits

from lrtricks_fused.step.rule import RULES

VALUES = dict(momentum=0.9, dampening=0.1, beta1=0.9, beta2=0.99, eps=1e-8, alpha=0.9, window=3, momentum_decay=0.004)
SCALARS = dict(lr=0.1, weight_decay=0.01, decoupled_weight_decay=False, maximize=False, keep_prob=0.5, grad_weight=0.7,
               seed=-3)  # fmt: skip
OPTIONAL = dict(
    lr_tensor=torch.tensor(0.2), keep_prob_tensor=torch.tensor(0.4), grad_weight_tensor=torch.tensor(0.3),
    grad_scale=torch.tensor(2.0), found_inf=torch.tensor(0.0),
)  # fmt: skip
NAMES = [f"{name}_" for name in RULES]
by_op = pytest.mark.parametrize("name", NAMES)


def op(name):
    return getattr(torch.ops.lrtricks_fused, name).default


def rule_of(name):
    return RULES[name.removesuffix("_")]


def hyper_of(name):
    """Hyper-parameters and flags of an op."""
    rule = rule_of(name)
    return {hyper: VALUES.get(hyper, 0.9) for hyper in rule.hypers} | dict.fromkeys(rule.flags, False)


def sample(name, shapes=((700,), (3, 5))):
    """Positional and keyword arguments of one call, all states used."""
    rule, hyper = rule_of(name), hyper_of(name)
    generator = torch.Generator().manual_seed(0)
    lists = [[torch.rand(shape, generator=generator) + 0.5 for shape in shapes] for _ in range(2 + len(rule.states))]
    if rule.ring:
        lists[2] = [torch.rand((hyper["window"], *shape), generator=generator) + 0.5 for shape in shapes]
    scalars = [[torch.tensor(0.5, dtype=torch.float64) for _ in shapes] for _ in rule.scalar_states]
    steps = [torch.tensor(4.0, dtype=torch.float64) for _ in shapes]
    return [*lists, *scalars, steps, list(range(len(shapes)))], {**hyper, **SCALARS}


def tensors_of(args):
    return [tensor for group in args[:-1] for tensor in group]


@by_op
@pytest.mark.parametrize("optional", [{}, OPTIONAL], ids=["numbers", "tensors"])
def test_opcheck(name, optional):
    args, kwargs = sample(name)
    torch.library.opcheck(op(name), args, {**kwargs, **optional})


@by_op
def test_opcheck_with_a_slope_of_centralized_gradients(name):
    args, kwargs = sample(name)
    torch.library.opcheck(op(name), [*args, True, torch.tensor(3.0, dtype=torch.float64)], kwargs)


# The lists (counted from params) that a variant may leave empty.
EMPTY = [
    (f"{rule.name}_", [2 + rule.states.index(state) for state in states])
    for rule in RULES.values()
    for count in range(1, 1 + len(rule.optional_states))
    for states in itertools.combinations(rule.optional_states, count)
]


@pytest.mark.parametrize(("name", "empty"), EMPTY)
def test_opcheck_of_variants_with_fewer_states(name, empty):
    args, kwargs = sample(name)
    for position in empty:
        args[position] = []
    torch.library.opcheck(op(name), args, kwargs)


@by_op
def test_a_call_steps(name):
    args, kwargs = sample(name)
    before = [tensor.clone() for tensor in tensors_of(args)]
    assert op(name)(*args, **kwargs) is None
    changed = [not torch.equal(old, new) for old, new in zip(before, tensors_of(args), strict=True)]
    assert changed == [i not in (2, 3) for i in range(len(changed))]  # all but the two gradients


@by_op
def test_found_inf_touches_nothing(name):
    args, kwargs = sample(name)
    before = [tensor.clone() for tensor in tensors_of(args)]
    op(name)(*args, **kwargs, found_inf=torch.tensor(1.0))
    assert_same_bits(tensors_of(args), before)


@by_op
def test_optional_tensors_override_the_numbers(name):
    args, kwargs = sample(name)
    twin, _ = sample(name)
    op(name)(*args, **kwargs, **{**OPTIONAL, "lr_tensor": torch.tensor(0.25), "grad_weight_tensor": torch.tensor(0.5)})
    op(name)(*twin, **{**kwargs, "lr": 0.25, "keep_prob": 0.4, "grad_weight": 0.25})
    assert_same_bits(tensors_of(args), tensors_of(twin))


def _grads_too_short(args, kwargs):
    args[1] = args[1][:1]


def _grad_shape(args, kwargs):
    args[1][1] = torch.ones(5, 3)


def _grad_dtype(args, kwargs):
    args[1][1] = args[1][1].double()


def _state_shape(args, kwargs):
    args[2][1] = torch.ones(15)


def _state_too_short(args, kwargs):
    args[2] = args[2][:1]


def _state_dtype(args, kwargs):
    args[2] = [state.double() for state in args[2]]


def _steps_too_short(args, kwargs):
    args[-2] = args[-2][:1]


def _step_dtype(args, kwargs):
    args[-2][1] = args[-2][1].float()


def _indices_too_short(args, kwargs):
    args[-1] = [0]


def _integer_param(args, kwargs):
    args[0][1] = args[0][1].long()
    args[1][1] = args[1][1].long()


def _overlapping_param(args, kwargs):
    args[0][1] = torch.ones(5).expand(3, 5)


def _overlapping_state(args, kwargs):
    args[2][1] = torch.ones(5).expand(3, 5)


def _keep_prob(args, kwargs):
    kwargs["keep_prob"] = 1.5


def _keep_prob_nan(args, kwargs):
    kwargs["keep_prob"] = float("nan")


def _lr_two_numbers(args, kwargs):
    kwargs["lr_tensor"] = torch.ones(2)


WRONG = [_grads_too_short, _grad_shape, _grad_dtype, _state_shape, _state_too_short, _state_dtype, _steps_too_short,
         _step_dtype, _indices_too_short, _integer_param, _overlapping_param, _overlapping_state, _keep_prob,
         _keep_prob_nan, _lr_two_numbers]  # fmt: skip


@by_op
@pytest.mark.parametrize("spoil", WRONG, ids=lambda f: f.__name__)
def test_wrong_arguments_raise_and_touch_nothing(name, spoil):
    args, kwargs = sample(name)
    spoil(args, kwargs)
    before = [tensor.clone() for tensor in tensors_of(args)]
    with pytest.raises(RuntimeError, match="Invalid "):
        op(name)(*args, **kwargs)
    assert_same_bits(tensors_of(args), before)
