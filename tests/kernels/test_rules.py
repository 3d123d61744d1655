"""The records of the rules: what they say must be what the ops' schemas say, and everything must know every rule."""

import re

import pytest
import torch
from inventory import RICH
from triton_worker import compiled, interpreted

from lrtricks_fused.step.call import BESIDE
from lrtricks_fused.step.rule import RULES
from lrtricks_fused.tools import verify

SCALARS = {"lr", "weight_decay", "decoupled_weight_decay", "maximize", "keep_prob", "grad_weight", "seed"}
by_rule = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)


def schema(rule):
    return getattr(torch.ops.lrtricks_fused, f"{rule.name}_").default._schema


def own_numbers(rule):
    """What the rule has besides the operands and the arguments of all rules: the names, and their types."""
    required = [a for a in schema(rule).arguments if a.kwarg_only and not a.has_default_value()]
    return {argument.name: str(argument.type) for argument in required if argument.name not in SCALARS}


def test_every_rule_has_ops_and_every_op_a_rule():
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("lrtricks_fused::") for s in schemas if s.name.startswith("lrtricks_fused::")}
    steps = {name for name in names if re.search("_table_$", name)}
    assert steps == {f"{name}_table_" for name in RULES}


@by_rule
def test_states_are_those_of_the_schema(rule):
    arguments = schema(rule).arguments
    lists = [
        argument.name for argument in arguments if not argument.kwarg_only and str(argument.type) == "List[Tensor]"
    ]
    scalar_states = [name for name, _ in rule.scalar_states]
    assert lists == ["params", "grads", *(f"{name}s" for name in (*rule.states, *scalar_states)), "steps"]
    written = {argument.name for argument in arguments if argument.is_write}
    assert written == {*lists, "sums", *BESIDE} - {"grads"}


@by_rule
def test_hypers_and_flags_are_those_of_the_schema(rule):
    kind = "int" if rule.ring else "float"
    numbers, flags = dict.fromkeys(rule.hypers, kind), dict.fromkeys(rule.flags, "bool")
    assert list(own_numbers(rule).items()) == [*numbers.items(), *flags.items()]


@by_rule
def test_states_that_a_call_must_have(rule):
    # The op itself refuses a list that is empty where the record requires the state, and no other.
    from test_ops import sample

    for number, state in enumerate(rule.states):
        args, kwargs = sample(f"{rule.name}_")
        args[2 + number] = []
        step = schema(rule).name.split("::")[1]
        if state in rule.required_states:
            with pytest.raises(RuntimeError, match=f"Invalid {state}s"):
                getattr(torch.ops.lrtricks_fused, step)(*args, **kwargs)
        else:
            getattr(torch.ops.lrtricks_fused, step)(*args, **kwargs)


def test_inventories_have_every_rule():
    from helpers import call_of, leaves

    def rules(cases):
        found = set()
        for case in cases:
            optimizer = case(leaves((3,)))
            optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
            found.add(call_of(optimizer).rule)
        return found

    assert rules(case.make for case in RICH) == set(RULES)
    ours = [lambda params, v=v: getattr(verify.stepping.optim, v.optimizer)(params, **v.options)
            for v in verify.VARIANTS]  # fmt: skip
    assert rules(ours) == set(RULES)


NUMBERS = [0.0, -0.0, 1.0, 16.0, 0.9, -0.5, 1e-300, 5e-324, float("inf"), float("nan"), 2.0**70]


@compiled
def test_numbers_in_a_tuple_look_alike_to_triton():
    from lrtricks_fused.triton_kernels.doubles import in_halves

    for word in in_halves(NUMBERS):
        assert 2**32 < word < 2**63 and word % 2 == 1
    assert in_halves([]) == ()


@interpreted
def test_numbers_come_out_of_a_tuple_as_they_went_in():
    from triton_functions import store_doubles

    from lrtricks_fused.triton_kernels.doubles import in_halves

    out = torch.zeros(len(NUMBERS), dtype=torch.float64)
    store_doubles[(1,)](out, in_halves(NUMBERS))
    wanted = torch.tensor(NUMBERS, dtype=torch.float64)
    assert torch.equal(out.view(torch.int64), wanted.view(torch.int64))


@compiled
def test_the_constants_of_a_rule_are_counted():
    from lrtricks_fused.triton_kernels.instances import functions_of

    counts = {name: functions_of(name).number for name in RULES}
    assert counts.items() >= {"sgd": 2, "adam": 7, "rmsprop": 4, "radam": 7, "adabelief": 7}.items()
