"""torch.compile of a step: the bits of an eager one, and what is refused."""

import copy
import math

import pytest
import torch
from compiled_steps import STEPS, compiled, fresh, graphs, run, scheduled  # noqa: F401 (fresh: a fixture)
from helpers import assert_same_bits, everything, leaves, random_grads
from inventory import RICH
from test_storage import STORED

import lrtricks_fused
from lrtricks_fused import Adam, NAdam


@pytest.mark.parametrize(
    ("case", "backend"),
    [*((case, "native") for case in RICH), *((case, "reference") for case in RICH[:2])],
    ids=lambda it: getattr(it, "name", it),
)
def test_a_compiled_step_takes_the_same_bits(case, backend):
    results = []
    for compile_it in (False, True):
        params = leaves((6, 50), (700,), (0,))
        optimizer = case.make(params, keep_prob=0.5, backend=backend)
        step = compiled(optimizer) if compile_it else optimizer.step
        for number in range(3):
            random_grads(params, number)
            if number == 0:  # gets its first step in the second
                params[1].grad = None
            step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("max_norm", [0.5, math.inf])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_step_clips(backend, max_norm):
    results = []
    for compile_it in (True, False):
        first, second, third = leaves((6, 50), (700,), (3,))
        optimizer = Adam([{"params": [first, second]}, {"params": [third], "eps": 1e-6}], max_norm=max_norm)
        norms = []
        step = compiled(optimizer, backend=backend) if compile_it else optimizer.step
        state = run(
            optimizer, step, lambda _, norms=norms, optimizer=optimizer: norms.append(optimizer.grad_norm.clone())
        )
        results.append([*norms, *state])
    assert graphs() == 1 and len({float(norm) for norm in norms}) == STEPS
    assert_same_bits(*results)


def test_a_whole_training_step_in_one_compile():
    results = []
    for compile_it in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = NAdam(model.parameters(), keep_prob=0.5)
        between = scheduled(optimizer, float)

        def train(inputs, model=model, optimizer=optimizer):
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        step = torch.compile(train, backend="eager") if compile_it else train
        for number in range(STEPS):
            step(torch.randn(4, 8, generator=torch.Generator().manual_seed(number)))
            between(number)
        results.append(everything(optimizer))
    assert graphs() == 3  # the forward pass, and the two of the step
    assert_same_bits(*results)


def test_steps_compiled_and_eager_by_turns_and_a_checkpoint_between():
    optimizers = [NAdam(leaves((6, 50), (700,)), keep_prob=0.5) for _ in range(2)]
    step = compiled(optimizers[0])
    for number in range(STEPS):
        for optimizer, steps in zip(optimizers, ((step, optimizers[0].step), (optimizers[1].step,) * 2), strict=True):
            random_grads(optimizer.param_groups[0]["params"], number)
            steps[number % 2]()
            if number == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_bits(*map(everything, optimizers))


# Of gradients of another dtype torch itself cannot trace the parameter (2.13).
@pytest.mark.parametrize("kind", [name for name, (dtype, grads, _) in STORED.items() if dtype == grads])
def test_what_is_stored_otherwise_than_it_is_stepped(kind):
    dtype, _, arguments = STORED[kind]
    arguments = dict(arguments)
    mirror = arguments.pop("mirror", None)
    results = []
    for compile_it in (True, False):
        params = leaves((6, 50), (700,), (0,), dtype=dtype)
        optimizer = Adam(params, keep_prob=0.5, **arguments)
        outs = [torch.empty(param.shape, dtype=mirror) for param in params] if mirror else []
        for param, out in zip(params, outs, strict=False):
            optimizer.mirror(param, out)
        state = run(optimizer, compiled(optimizer) if compile_it else optimizer.step)
        changes = optimizer.pop_changes().values() if optimizer.track_changes else ()
        results.append([*state, *outs, *(change.bitmap for change in changes)])
    assert graphs() == 1
    assert_same_bits(*results)


@pytest.mark.parametrize(
    ("kind", "backend"), [("split", "aot_eager"), ("fp32, stochastic bf16 states", "eager")], ids=str
)
def test_mirrors_changes_and_checkpoints_between_compiled_steps(kind, backend):
    dtype, _, arguments = STORED[kind]
    results = []
    for compile_it in (True, False):
        params = leaves((6, 50), (700,), (0,), dtype=dtype)
        optimizer = Adam(params, keep_prob=0.5, max_norm=1.0, track_metrics=True, **arguments)
        step = compiled(optimizer, backend=backend) if compile_it else optimizer.step
        out, told = torch.zeros(700, dtype=torch.float16), []
        for number in range(8):
            random_grads(params, number)
            if dtype == torch.float32 and number in (2, 6):
                optimizer.mirror(params[1], out if number == 2 else None)
            if number == 4:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if number == 7:
                params[0].grad = None
            step()
            told += [value.clone() for value in optimizer.metrics().values()]
            if number in (1, 5):
                told += [it for changes in optimizer.pop_changes().values() for it in (changes.bitmap, changes.values)]
        results.append([*everything(optimizer), out, *told])
    assert_same_bits(*results)


def test_a_mirror_that_cannot_be_written_is_refused_when_the_graph_runs():
    params, out = leaves((6, 50), (700,)), torch.empty(700, dtype=torch.bfloat16)
    optimizer = Adam(params, keep_prob=0.5)
    optimizer.mirror(params[1], out)
    step = compiled(optimizer)
    run(optimizer, step)
    before = [tensor.clone() for tensor in everything(optimizer)]
    out.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="Invalid mirror"):
        step()
    assert_same_bits(everything(optimizer), before)


def test_slopes_are_added_up():
    totals = []
    for compile_it in (True, False):
        first, second = leaves((6, 50), (700,))
        optimizer = Adam([{"params": [first]}, {"params": [second], "eps": 1e-6}], keep_prob=0.5)
        slopes = {}
        with optimizer.add_slopes_to(slopes):
            run(optimizer, compiled(optimizer) if compile_it else optimizer.step)
        totals.append(list(slopes.values()))
    assert totals[0][0] != 0
    assert_same_bits(*totals)


def test_an_overflow_is_skipped():
    results = []
    for compile_it in (True, False):
        params = leaves((6, 50))
        optimizer = Adam(params, keep_prob=0.5, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        if compile_it:
            optimizer.step = compiled(optimizer)
        for number in range(4):
            optimizer.zero_grad()
            scaler.scale(params[0].square().sum() * (float("inf") if number == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(everything(optimizer))
    assert results[0][-1] == 3  # steps
    assert_same_bits(*results)


@pytest.mark.parametrize("name, value", [("lr", -1.0), ("keep_prob", 1.5), ("grad_weight", -0.5), ("lr", torch.nan)])
def test_a_bad_tensor_is_refused_when_the_graph_runs(name, value):
    number = torch.tensor(0.5)
    optimizer = Adam(leaves((6, 50)), **{name: number})
    step = compiled(optimizer)
    run(optimizer, step)
    before = [tensor.clone() for tensor in everything(optimizer)]
    number.fill_(value)
    with pytest.raises(ValueError, match=f"Invalid {name}="):
        step()
    assert_same_bits(everything(optimizer), before)


def test_a_group_that_cannot_be_stepped_leaves_the_others_alone():
    first, second = leaves((6, 50), (700,))
    optimizer = Adam([{"params": [first]}, {"params": [second], "eps": 1e-6}], keep_prob=0.5)
    step = compiled(optimizer)
    run(optimizer, step)
    optimizer.state[second]["step"].fill_(0.5)
    before = [tensor.clone() for tensor in everything(optimizer)]
    with pytest.raises(ValueError, match="Invalid state step="):
        step()
    assert_same_bits(everything(optimizer), before)


def test_copies_have_names_of_their_own():
    optimizer = lrtricks_fused.RMSprop(leaves((6, 50)))
    assert len({optimizer._serial, copy.deepcopy(optimizer)._serial, copy.copy(optimizer)._serial}) == 3


def test_opcheck():
    """The op alone: schema, fake tensors, functionalization."""
    optimizer = Adam(leaves((6, 50), (700,)), keep_prob=0.5)
    run(optimizer, compiled(optimizer), scheduled(optimizer, float))
    ((layout, _),) = optimizer._tables
    params = [param.detach() for param in optimizer.param_groups[0]["params"]]
    columns = [[state[name] for state in optimizer.state.values()] for name in ("exp_avg", "exp_avg_sq", "step")]
    written = [tensor.clone() for column in (params, *columns) for tensor in column]
    operands = (written, list(map(torch.ones_like, params)), torch.tensor([0.01, 0.5, 1.0]).double(), [], layout)
    torch.library.opcheck(torch.ops.lrtricks_fused.step_.default, operands)


def test_a_refused_compiled_step_makes_no_states():
    optimizer = Adam([{"params": leaves((6, 50))}, {"params": leaves((7,))}])
    optimizer.param_groups[1]["betas"] = (2.0, 0.9)
    random_grads([p for group in optimizer.param_groups for p in group["params"]], 0)
    with pytest.raises(Exception, match=r"betas|Observed exception"):
        compiled(optimizer, backend="eager")()
    assert not optimizer.state
