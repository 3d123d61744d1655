"""States of one number per parameter, which advance where the constants of a step are made.

Of a rule of the tests' own, by the reference and by Triton.
"""

from dataclasses import replace

import pytest
import torch
from helpers import assert_same_bits, leaves
from triton_worker import interpreted, triton_step

from lrtricks_fused.step import copies, operands, reference, table
from lrtricks_fused.step.call import StepCall
from lrtricks_fused.step.rule import RULES, Rule

SHAPES = [(8192,), (), (0,), (37,)]


def fading(grad, state, hyper, step, const, scalars):
    scalars["weight"] *= hyper["rate"]
    state["exp_avg"] = const(scalars["weight"]) * state["exp_avg"] + grad
    return state["exp_avg"] * const(1.0 / (scalars["weight"] + step))


def enter_rule(monkeypatch):
    """What a new rule adds to the package: its record, and two functions in triton_kernels/rules.py."""
    record = Rule("fading", fading, ("exp_avg",), scalar_states=(("weight", 1.0),), hypers=("rate",))
    monkeypatch.setitem(RULES, "fading", record)


rule = pytest.fixture(enter_rule)


def make_call(dtype=torch.float32):
    """A step of the rule, with its states as they begin."""
    params = [param.detach() for param in leaves(*SHAPES, dtype=dtype)]
    zeros = [torch.zeros((), dtype=torch.float64) for _ in params]
    return StepCall(
        rule="fading", params=params, grads=[grad.detach() for grad in leaves(*SHAPES, dtype=dtype, seed=1)],
        states={"exp_avg": [torch.zeros_like(param) for param in params]}, steps=zeros,
        scalar_states={"weight": [torch.ones_like(zero) for zero in zeros]}, param_indices=list(range(len(params))),
        hyper={"rate": 0.7}, lr=0.1, weight_decay=0.0, decoupled_weight_decay=False, maximize=False, keep_prob=0.5,
        grad_weight=1.0, seed=3, grad_scale=None, found_inf=None, tables={},
    )  # fmt: skip


def tensors(call):
    return [*call.params, *call.states["exp_avg"], *call.scalar_states["weight"], *call.steps]


def test_the_reference_advances_them_once_per_step(rule):
    call = make_call()
    for _ in range(3):
        reference.step(call)
    assert [float(weight) for weight in call.scalar_states["weight"]] == [0.7 * 0.7 * 0.7] * len(SHAPES)
    before = [tensor.clone() for tensor in tensors(call)]
    reference.step(replace(call, found_inf=torch.tensor(1.0)))
    assert_same_bits(tensors(call), before)


WRONG = {
    "dtype": lambda state: state.float(),
    "number of elements": lambda state: torch.zeros(2, dtype=torch.float64),
    "device": lambda state: state.to("meta"),
    "negated": lambda state: torch._neg_view(state),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_none_is_refused(rule, what):
    call = make_call()
    call.scalar_states["weight"][1] = WRONG[what](call.scalar_states["weight"][1])
    with pytest.raises(ValueError, match=r"Invalid state weight .*must be one float64 on cpu"):
        operands.check_operands(call)
    call.scalar_states["weight"][1] = 3.0
    with pytest.raises(TypeError, match="Invalid state weight of type float"):
        operands.check_operands(call)


def test_parameters_that_share_one_are_stepped_one_by_one(rule):
    call = make_call()
    assert not operands.shares_memory(call)
    call.scalar_states["weight"][3] = call.scalar_states["weight"][0]
    assert operands.shares_memory(call)
    pieces = copies.one_by_one(call)
    assert [piece.scalar_states["weight"] for piece in pieces] == [[state] for state in call.scalar_states["weight"]]


def test_the_table_has_their_addresses_and_sees_that_they_move(rule):
    call = make_call()
    made = table.AddressTable(call, None)
    states = call.scalar_states["weight"]
    assert made.rows[:, table.SCALAR_STATE].tolist() == [state.data_ptr() for state in states]
    assert made.holds(call)
    call.scalar_states["weight"] = [*states[:2], states[2].clone(), *states[3:]]
    assert not made.holds(call)


def enter_functions(monkeypatch):
    import triton_functions

    from lrtricks_fused.triton_kernels import rules

    enter_rule(monkeypatch)
    for name in ("fading", "fading_constants"):
        monkeypatch.setattr(rules, name, getattr(triton_functions, name), raising=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@interpreted
def test_triton_equals_the_reference(dtype):
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter_functions(monkeypatch)
        calls = ours, expected = make_call(dtype), make_call(dtype)
        for found_inf in (0.0, 1.0, 0.0):
            for call, run in zip(calls, (triton_step, reference.step), strict=True):
                call.found_inf, call.prepared = torch.tensor(found_inf), False
                run(call)
        assert [float(weight) for weight in ours.scalar_states["weight"]] == [0.7 * 0.7] * len(SHAPES)
        assert_same_bits(tensors(ours), tensors(expected))


@interpreted
def test_without_a_count_of_steps_they_stay():
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter_functions(monkeypatch)
        monkeypatch.setattr(table, "check_operands", lambda call: None)
        call = make_call()
        call.steps[1].fill_(0.5)
        triton_step(call)
        assert [float(weight) for weight in call.scalar_states["weight"]] == [0.7, 1.0, 0.7, 0.7]
