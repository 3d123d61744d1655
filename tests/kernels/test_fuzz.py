"""Whatever happens between steps, native and reference do the same: both step to the same bits, or refuse alike.

A refused step changes nothing, and names what is wrong. Derandomised; with LRTRICKS_FULL=1 many more examples.
"""

import random
import re

import pytest
import torch
from fuzz_events import DTYPES, EVENTS, GOOD, emptied_storage, leaf, memory, params_of, set_grads
from helpers import same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inventory import FULL, RICH

EXAMPLES = 3000 if FULL else 60  # of each rule
few = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
salt = st.integers(0, 2**32 - 1)
script = st.lists(st.tuples(st.sampled_from(EVENTS), salt, st.booleans()), max_size=24)


def seen(value):
    """What can be told of a value, and its memory."""
    if not isinstance(value, torch.Tensor):
        return repr(value), None
    told = [type(value).__name__, value.dtype, value.device, value.layout, tuple(value.shape), value.requires_grad]
    if value.layout is torch.strided and type(value).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        told += [value.stride(), value.storage_offset(), value.is_neg(), value._is_zerotensor()]
    own = memory(value)
    return str(told), None if own is None else own.clone()


@torch.no_grad()
def look(opt):
    """All that a step may change, or must not: labels, descriptions and memory."""
    values = {}
    for g, group in enumerate(opt.param_groups):
        values.update({f"group {g} {name}": group[name] for name in group if name != "params"})
        for p, param in enumerate(group["params"]):
            values[f"group {g} param {p}"] = param
            values[f"group {g} grad {p}"] = param.grad
            values.update({f"group {g} param {p} {n}": v for n, v in sorted(opt.state.get(param, {}).items())})
    values["norm"] = opt.grad_norm
    values["states"] = sorted(len(state) for state in opt.state.values())
    return {label: seen(value) for label, value in values.items()}


def assert_same(left, right, only=""):
    for label in left.keys() | right.keys():
        if only in label:
            (told, mine), (told_too, theirs) = left.get(label, ("-", None)), right.get(label, ("-", None))
            assert told == told_too, label
            same = (mine is None) == (theirs is None) and (mine is None or same_bits(mine, theirs))
            assert same, (label, mine, theirs)


def outcome(call, *args):
    """The result and None, or None and what was raised."""
    try:
        return call(*args), None
    except Exception as error:
        return None, (type(error), re.sub(r"\b1\d{14}\b", "<id>", str(error)))


def make(case, backend, salt):
    rng = random.Random(salt)
    state_dtype = rng.choice([None, None, torch.bfloat16, torch.float16])
    dtypes = DTYPES if state_dtype is None else [torch.float32, torch.float64, state_dtype]
    groups = [{"params": [leaf(rng, dtypes) for _ in range(rng.randrange(5))]} for _ in range(rng.randint(1, 3))]
    for group in groups[1:]:
        name = rng.choice(["lr", "weight_decay", "keep_prob", "grad_weight", "maximize", "centralize", "seed"])
        group[name] = rng.choice(GOOD[name])
    options = dict(keep_prob=rng.choice([1.0, 0.5]), centralize=rng.random() < 0.3, fused=rng.choice([None, True]))
    return case.make(groups, backend=backend, state_dtype=state_dtype, **options)


def stepped(opts, undo):
    """One step of both; a refused one changes nothing, and is none any more once what it refuses is taken back."""
    before = [look(opt) for opt in opts]
    (_, error), (_, error_too) = (outcome(opt.step) for opt in opts)
    assert error == error_too
    after = [look(opt) for opt in opts]
    for old, new in zip(before, after, strict=True):
        assert_same(old, new, "" if error else "grad ")
    assert_same(*after)
    if error:
        assert error[0] in (KeyError, TypeError, ValueError) and "/" not in error[1] and ".cpp" not in error[1], error
        for number in range(2):
            for back in reversed(undo[number]):
                back()
    for opt, backs in zip(opts, undo, strict=True):
        backs.clear()
        opt.__dict__.pop("grad_scale", None)
        opt.__dict__.pop("found_inf", None)
    return error


def play(opts, setup, events, before_event=lambda number, undo: None):
    """Both optimizers through the same events, and steps after some of these."""
    undo = [], []
    for number, (event, salt, with_step) in enumerate(events):
        before_event(number, undo)
        for opt in opts:
            set_grads(opt, random.Random(setup + number))
        before = [look(opt) for opt in opts]
        results = [outcome(event, opt, random.Random(salt)) for opt in opts]
        assert results[0][1] == results[1][1]
        if results[0][1]:
            if "load" in event.__name__ or "group" in event.__name__:
                for old, opt in zip(before, opts, strict=True):
                    assert_same(old, look(opt))
            continue
        for index, (result, _) in enumerate(results):
            if isinstance(result, torch.optim.Optimizer):
                opts[index], undo[index][:] = result, []
            elif result is not None:
                undo[index].append(result)
        emptied = [result for result, _ in results if event is emptied_storage and result]
        if with_step or emptied:  # torch itself may crash where it reads what is not there
            refused = stepped(opts, undo)
            for back in emptied if not refused else []:
                back()
    for opt in opts:
        set_grads(opt, random.Random(setup))
    stepped(opts, undo)
    assert len(params_of(opts[0])) == len(params_of(opts[1]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
@given(setup=salt, events=script)
@few
def test_both_backends_do_the_same(case, setup, events):
    play([make(case, backend, setup) for backend in ("native", "reference")], setup, events)


def plain_grads(opt, salt):
    """Contiguous gradients of the parameters that have memory."""
    generator = torch.Generator().manual_seed(salt)
    for param in params_of(opt):
        if type(param).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", RICH[::6], ids=lambda c: c.name)
@given(setup=salt, events=script)
@settings(few, max_examples=EXAMPLES // 10)
def test_steps_that_repeat_others_do_the_same(case, setup, events):
    """Of plain parameters; before each event there is a record of a step, and some have repeated it."""

    def optimizer(backend):
        shapes = [[(), (65,), (5, 7)], [(513,)]]
        groups = [{"params": [torch.ones(shape).requires_grad_() for shape in some]} for some in shapes]
        return case.make(groups, backend=backend, keep_prob=0.5)

    def repeat(number, undo):
        for step in range(4):
            for opt in opts:
                opt._repeats._patience = 1
                if step != 2:
                    plain_grads(opt, setup + number + step)
            stepped(opts, undo)
        assert number or opts[0]._repeats._repeated

    opts = [optimizer(backend) for backend in ("native", "reference")]
    play(opts, setup, events, repeat)
