"""Address tables between steps: whatever happens to the tensors, the step is the one of the tensors themselves."""

import copy
import pickle

import pytest
import torch
from helpers import assert_same_bits, call_of, shrink_in_place
from test_ops import NAMES, SCALARS, hyper_of, rule_of, sample

import lrtricks_fused as lrt
from lrtricks_fused.step import host, native, watched
from lrtricks_fused.step.storage import DTYPE_CODES
from lrtricks_fused.step.table import (
    COLUMNS,
    GRAD,
    NUMEL,
    PARAM,
    PARAM_DTYPE,
    PARAM_INDEX,
    SCALAR_STATE,
    STATE,
    STATE_DTYPE,
    STEP,
)

OPTIONS = dict(lr=0.1, betas=(0.8, 0.9), weight_decay=0.1, keep_prob=0.5, amsgrad=True)
SHAPES = ((0,), (700,), (), (3, 5), (513,))


def optimizer(backend):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return lrt.Adam(params, backend=backend, **OPTIONS)


def parameters(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def contents(opt):
    return parameters(opt) + [t for param in parameters(opt) for n, t in opt.state[param].items() if n != "identity"]


def new_gradients(opt):
    for param in parameters(opt):
        param.grad = param.grad.clone() * 2


def some_without_gradient(opt):
    parameters(opt)[1].grad = None


def moved_parameter(opt):
    parameters(opt)[1].data = parameters(opt)[1].data.clone() + 1


def other_dtype(opt):
    param = parameters(opt)[1]
    param.grad, gradient = None, param.grad
    param.data = param.data.double()
    param.grad = gradient.double()
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        opt.state[param][name] = opt.state[param][name].double()


def transposed_in_place(opt):
    for tensor in (parameters(opt)[3], parameters(opt)[3].grad):
        tensor.data = tensor.data.t()
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        opt.state[parameters(opt)[3]][name].t_()


def strided_gradient(opt):
    param = parameters(opt)[3]
    param.grad = torch.arange(15.0).view(5, 3).t()


def replaced_state(opt):
    opt.state[parameters(opt)[4]]["exp_avg"] = torch.ones(513)


def moved_state(opt):
    state = opt.state[parameters(opt)[4]]["exp_avg"]
    state.data = state.data + 1


def negated_state(opt):
    state = opt.state[parameters(opt)[4]]["exp_avg"]
    state.data = torch._neg_view(state.data)  # at the same address


def negated_parameter(opt):
    parameters(opt)[1].data = torch._neg_view(parameters(opt)[1].data)


def negated_gradient(opt):
    parameters(opt)[1].grad = torch._neg_view(parameters(opt)[1].grad)


def one_gradient_of_two(opt):
    parameters(opt)[1].grad = parameters(opt)[2].grad.expand(700).contiguous()
    parameters(opt)[1].requires_grad_(False)


def replaced_step(opt):
    opt.state[parameters(opt)[4]]["step"] = torch.tensor(7.0, dtype=torch.float64)


def cleared_state(opt):
    opt.state[parameters(opt)[1]] = {}


def all_states_cleared(opt):
    opt.state.clear()


def loaded(opt):
    state_dict = copy.deepcopy(opt.state_dict())
    for state in state_dict["state"].values():
        state["exp_avg"] += 1
    opt.load_state_dict(state_dict)


def added_group(opt):
    param = torch.ones(600, requires_grad=True)
    param.grad = torch.ones(600)
    opt.add_param_group({"params": [param], "lr": 0.5})


def changed_order(opt):
    opt.param_groups[0]["params"].reverse()


def amsgrad_off(opt):
    opt.param_groups[0]["amsgrad"] = False


EVENTS = [new_gradients, some_without_gradient, moved_parameter, other_dtype, transposed_in_place, strided_gradient,
          replaced_state, moved_state, negated_state, negated_parameter, negated_gradient, one_gradient_of_two,
          replaced_step, cleared_state, all_states_cleared, loaded, added_group,
          changed_order, amsgrad_off]  # fmt: skip


@pytest.mark.parametrize("looks", ["all", "no guards", "no library"])
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_steps_follow_the_tensors(event, looks, monkeypatch):
    if looks == "no guards":
        monkeypatch.setattr(watched, "TensorGuards", None)
    if looks == "no library":
        monkeypatch.setattr(host, "functions", lambda: None)
    native, reference = optimizer("native"), optimizer("reference")
    for opt in (native, reference):
        for _ in range(4):  # what is remembered of a first look is made at later ones
            opt.step()
        event(opt)
        opt.step()
        opt.step()
    tables = [kept for kept in native._tables.values() if kept.rows is not None]
    assert all((kept.watched.guards is not None) is (looks != "no guards") for kept in tables)
    assert_same_bits(*([t.resolve_neg() for t in contents(opt)] for opt in (native, reference)))


@pytest.mark.parametrize("looks", ["library", "Python"])
@pytest.mark.parametrize("which", ["parameter", "gradient", "state exp_avg_sq"])
def test_a_storage_that_has_shrunk_where_it_is_is_refused(which, looks, monkeypatch):
    if looks == "Python":
        monkeypatch.setattr(host, "functions", lambda: None)
    (param,) = params = [torch.ones(5000, requires_grad=True)]
    opt = lrt.Adam(params, backend="native")
    monkeypatch.setattr(opt._repeats, "note", lambda *_: None)  # which has looks of its own
    param.grad = torch.ones(5000)
    for _ in range(4):
        opt.step()
    shrink_in_place({"parameter": param, "gradient": param.grad}.get(which, opt.state[param]["exp_avg_sq"]))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"Invalid {which} .*: its storage of 19999 bytes does not hold it"):
            opt.step()
    assert float(opt.state[param]["step"]) == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_a_copy_has_tensors_of_its_own(copied):
    opt = optimizer("native")
    opt.step()
    other = copied(opt)
    for mine, param in zip(parameters(other), parameters(opt), strict=True):
        mine.grad = param.grad.clone()
    before = [tensor.clone() for tensor in contents(opt)]
    other.step()
    assert_same_bits(contents(opt), before)
    opt.step()
    assert_same_bits(contents(other), contents(opt))


def test_gradients_are_not_kept_alive():
    import weakref

    opt = optimizer("native")
    opt.step()
    gone = [weakref.ref(param.grad) for param in parameters(opt)]
    opt.zero_grad()
    assert not any(ref() is not None for ref in gone)


def table_of(args, rule):
    params, grads, *columns = args[:-2]
    states, scalar_states = columns[: len(rule.states)], columns[len(rule.states) :]
    rows = torch.zeros(len(params), COLUMNS, dtype=torch.int64)
    for i, row in enumerate(rows):
        row[PARAM], row[GRAD], row[STEP] = (column[i].data_ptr() for column in (params, grads, args[-2]))
        for first, some in ((STATE, states), (SCALAR_STATE, scalar_states)):
            for number, column in enumerate(some, first):
                row[number] = column[i].data_ptr()
        row[NUMEL], row[PARAM_INDEX] = params[i].numel(), args[-1][i]
        row[PARAM_DTYPE] = row[STATE_DTYPE] = DTYPE_CODES[torch.float32]
    return rows


def packed(name, kwargs):
    """Integers, numbers and tensors of an op over a table of float32, written out."""
    rule, code = rule_of(name), DTYPE_CODES[torch.float32]
    given = {number: value for number, value in kwargs.items() if number not in rule.flags}
    own = [given[number] for number in rule.hypers]
    flags = [kwargs[flag] for flag in rule.flags]
    nothing_there, no_slices, no_shards, nothing_staged = 0, [0, 0], False, [False, 0]
    whole, real = (own, []) if rule.ring else ([], own)
    told = [given["decoupled_weight_decay"], given["maximize"], given["seed"]]
    of_table = [(1 << len(rule.states)) - 1, code, code, *no_slices, no_shards, *nothing_staged]
    integers = [nothing_there, *of_table, *whole, *flags, *told]
    return integers, [*real, *(given[number] for number in ("lr", "weight_decay", "keep_prob", "grad_weight"))], []


@pytest.mark.parametrize("name", NAMES)
def test_ops_on_a_table(name):
    args, kwargs = sample(name)
    twin, _ = sample(name)
    rule = rule_of(name)
    op = getattr(torch.ops.lrtricks_fused, name.removesuffix("_") + "_table_").default
    none = table_of(args, rule)[:0]  # nothing may be written behind opcheck's back
    torch.library.opcheck(op, (none, None, *packed(name, kwargs)))
    op(table_of(args, rule), None, *packed(name, kwargs))
    getattr(torch.ops.lrtricks_fused, name).default(*twin, **kwargs)
    for mine, theirs in zip(args[:-1], twin[:-1], strict=True):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize(
    "table", [torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, COLUMNS), torch.zeros(COLUMNS, dtype=torch.int64)]
)
def test_what_is_no_table_is_refused(table):
    with pytest.raises(RuntimeError, match="Invalid table"):
        torch.ops.lrtricks_fused.radam_table_(table, None, *packed("radam_", {**hyper_of("radam_"), **SCALARS}))


def test_tensors_that_may_be_missing_are_told_apart():
    # On the CPU a step reads none of the four that a device's step needs; they must not be taken for the others.
    results = []
    for memory in ((None,) * 4, tuple(torch.zeros(3) for _ in range(4)), (None, torch.zeros(3), None, torch.zeros(3))):
        opt = optimizer("native")
        opt.step()
        for param in parameters(opt):
            param.grad = param.grad * 0.5
        call = call_of(opt)
        call.lr, call.grad_weight, call.grad_scale = torch.tensor(0.25), torch.tensor(0.5), torch.tensor(4.0)
        (table,) = opt._tables.values()
        assert table.holds(call)
        with torch.no_grad():
            native._table_op(call.rule)(table.rows, None, *native.packed(call, table.codes, memory))
        results.append([t.clone() for t in contents(opt)])
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("short", range(3))
def test_lists_that_are_too_short_are_refused(short):
    lists = list(packed("radam_", {**hyper_of("radam_"), **SCALARS}))
    lists[0] = [1 << 4, *lists[0][1:]]  # one tensor, lr, is said to be there
    lists[2] = [torch.tensor(0.1)]
    lists[short] = lists[short][:-1]
    with pytest.raises(RuntimeError, match="Invalid integers, numbers or tensors"):
        torch.ops.lrtricks_fused.radam_table_(torch.zeros(0, COLUMNS, dtype=torch.int64), None, *lists)
