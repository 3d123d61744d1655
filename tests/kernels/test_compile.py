"""torch.compile of a step, without a break of the graph: the bits of an eager one, and no graph anew for a schedule."""

import copy
import gc
import math
import warnings
import weakref
from functools import partial

import numpy
import pytest
import torch
from helpers import assert_same_bits, everything, leaves, random_grads
from inventory import RICH
from test_storage import STORED
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import lrtricks_fused
from lrtricks_fused import SGD, Adam, CosineKDecayLR, NAdam

STEPS = 6
NAMES = ("lr", "keep_prob", "grad_weight")


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for of_torch in (".*torch.jit.script", "The .grad attribute of a Tensor that is not a leaf"):
            warnings.filterwarnings("ignore", of_torch)
        yield
    torch.set_grad_enabled(True)  # which a compiled no_grad forgets when something raises in it
    torch.compiler.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def compiled(optimizer, **options):
    return torch.compile(optimizer.step, **{"fullgraph": True, "backend": "eager", **options})


def run(optimizer, step, between=lambda number: None):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for number in range(STEPS):
        random_grads(params, number)
        step()
        between(number)
    return everything(optimizer)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
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


def scheduled(optimizer, kind):
    """Groups whose three numbers differ at every step, as new floats or written into tensors."""
    for group in optimizer.param_groups:
        group.update({name: kind(value) for name, value in zip(NAMES, (0.01, 0.5, 1.0), strict=True)})

    def between(number):
        for group in optimizer.param_groups:
            for name in NAMES:
                if isinstance(group[name], torch.Tensor):
                    group[name].mul_(0.9)
                else:
                    group[name] *= 0.9

    return between


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["floats", "tensors"])
def test_a_schedule_makes_no_further_graph(kind, backend):
    """The states are made before; a float that has changed is an input of the second graph."""
    results = []
    for compile_it in (True, False):
        first, second = leaves((6, 50), (700,))
        optimizer = Adam([{"params": [first]}, {"params": [second], "eps": 1e-6}])
        between = scheduled(optimizer, kind)
        step = compiled(optimizer, backend=backend) if compile_it else optimizer.step
        results.append(run(optimizer, step, between))
    assert graphs() == (2 if kind is float else 1)
    assert_same_bits(*results)


@pytest.mark.parametrize("max_norm", [0.5, math.inf])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
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


SCHEDULERS = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1),  # of the betas, too
    "CosineKDecayLR": lambda optimizer: CosineKDecayLR(optimizer, STEPS),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
def test_a_scheduler_that_was_attached_before(lr, scheduler):
    """torch's schedulers wrap ``step`` in something that is not traced: the graph begins inside, as torch.optim's."""

    def graphs_of(make, compile_it):
        torch.compiler.reset()
        counters.clear()
        optimizer = make(leaves((6, 50), (700,)), lr=copy.deepcopy(lr))
        schedule = scheduler(optimizer)
        step = compiled(optimizer, fullgraph=False) if compile_it else optimizer.step
        return run(optimizer, step, lambda number: schedule.step())

    ours = partial(Adam, keep_prob=0.5)
    results = [graphs_of(ours, True)]
    made, broken = graphs(), sum(counters["graph_break"].values())
    changes = not isinstance(lr, torch.Tensor) or scheduler is SCHEDULERS["OneCycleLR"]
    assert made == 1 + changes  # of a float: an input of the second graph
    if isinstance(lr, float):  # a tensor torch's own would take on a GPU alone
        graphs_of(partial(torch.optim.Adam, foreach=True), True)
        assert made <= graphs() and broken <= sum(counters["graph_break"].values())
    assert_same_bits(results[0], graphs_of(ours, False))


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


def test_several_optimizers_through_one_compiled_function():
    """Their integers differ, which makes them inputs of the graph; a seed takes 64 bits without a sign."""
    step = torch.compile(lambda optimizer: optimizer.step(), backend="eager", fullgraph=True)
    pairs = []
    for number, seed in enumerate((0, 5, 2**63 + 1, 2**64 - 1)):
        options = dict(lr=0.1, keep_prob=0.5, seed=seed, momentum_window=number + 2)
        pairs.append([SGD(leaves((5 + number, 6)), **options) for _ in range(2)])
    for one, other in pairs:
        assert_same_bits(run(one, partial(step, one)), run(other, other.step))


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


def test_tables_are_kept_where_the_optimizers_own_tensors_are_stepped():
    optimizer = Adam(leaves((6, 50), (700,)), keep_prob=0.5)
    run(optimizer, compiled(optimizer))
    (table,) = optimizer._tables.values()
    random_grads(optimizer.param_groups[0]["params"], 9)
    compiled(optimizer)()
    assert list(optimizer._tables.values()) == [table]


def test_nothing_of_an_optimizer_outlives_it():
    params = leaves((6, 50))
    optimizer = Adam(params, keep_prob=0.5)
    run(optimizer, compiled(optimizer))
    gone = [weakref.ref(optimizer), weakref.ref(params[0])]
    del optimizer, params
    torch.compiler.reset()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


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


@pytest.mark.parametrize("name", ["weight_decay", "lr", "keep_prob", "grad_weight"])
def test_numbers_that_are_ints_change(name):
    # A tracer's int, which one becomes that has changed, is asked nothing but arithmetic.
    results = []
    for compile_it in (False, True):
        optimizer = SGD(leaves((700,), (5,)), **{"lr": 0.1, "keep_prob": 0.5, name: 1})
        step = compiled(optimizer) if compile_it else optimizer.step
        numbers = iter([0, 1, 0, 1, 0, 1] if name == "keep_prob" else [2, 3, 5, 7, 0, 1])
        results.append(run(optimizer, step, lambda _, numbers=numbers, optimizer=optimizer:
                           optimizer.param_groups[0].update({name: next(numbers)})))  # fmt: skip
    assert_same_bits(*results)


def test_a_step_that_is_compiled_first_is_one_graph():
    """The states are made outside; only a first step that differs from the others (dampening) is a graph of its own."""
    for make, expected in (
        (partial(Adam, keep_prob=0.5), 1),
        (partial(SGD, momentum=0.9), 1),
        (partial(SGD, momentum=0.9, dampening=0.1), 2),
        (partial(Adam, track_changes=True), 1),
        (partial(Adam, max_norm=0.1, track_metrics=False), 1),
    ):
        torch.compiler.reset()
        counters.clear()
        optimizer = make(leaves((6, 50), (700,)))
        state = run(optimizer, compiled(optimizer), lambda number: None)
        assert graphs() == expected, make
        reference = make(leaves((6, 50), (700,)))
        assert_same_bits(state, run(reference, reference.step, lambda number: None))


def test_nothing_of_a_compiled_optimizer_outlives_it_before_a_reset():
    for backend in ("eager", "aot_eager"):
        params = leaves((6, 50), (700,))
        optimizer = Adam(params, keep_prob=0.5)
        step = compiled(optimizer, backend=backend)
        for number in range(3):
            random_grads(params, number)
            step()
        state = optimizer.state[params[0]]["exp_avg"]
        kept = [weakref.ref(tensor) for tensor in (*params, state)] + [weakref.ref(optimizer)]
        del params, optimizer, step, state
        gc.collect()
        assert [ref() for ref in kept] == [None] * len(kept)


def test_max_norm_is_an_input_once_it_has_changed():
    results = []
    for compile_it in (True, False):
        params = leaves((6, 50), (700,))
        optimizer = Adam(params, max_norm=1.0)
        step = compiled(optimizer) if compile_it else optimizer.step
        for number in range(6):
            random_grads(params, number)
            step()
            optimizer.max_norm *= 0.5
        results.append([optimizer.grad_norm, *everything(optimizer)])
    assert graphs() == 2
    assert_same_bits(*results)


def test_floats_of_a_second_graph_are_inputs_whatever_the_first_has_noted():
    """torch forgets to forget which names of floats were constants in a graph before."""
    symbolic_convert = pytest.importorskip("torch._dynamo.symbolic_convert")
    for number in range(100):
        symbolic_convert.TensorifyState.specialize(f"zf{number}")
    params = leaves((6, 50))
    optimizer = Adam(params, keep_prob=0.5)
    step = compiled(optimizer, backend="aot_eager")
    for number in range(5):
        random_grads(params, number)
        step()
        optimizer.param_groups[0]["keep_prob"] *= 0.9
    assert graphs() == 2


def looked_at(kind):
    """A compiled function that looks at the optimizer before it steps."""
    params = leaves((6, 50), (700,))
    optimizer = Adam(params, keep_prob=0.5, max_norm=0.1)

    def norm():
        return (optimizer.grad_norm, optimizer.step())[0]

    def count():
        return (len(optimizer.state), optimizer.step())[0]

    def member():
        return (params[0] in optimizer.state, optimizer.step())[0]

    return optimizer, {"norm": norm, "count": count, "member": member}[kind]


@pytest.mark.parametrize("kind", ["norm", "count", "member"])
def test_a_function_that_looks_at_the_optimizer_before_the_step(kind):
    results = []
    for compile_it in (True, False):
        optimizer, function = looked_at(kind)
        call = torch.compile(function, backend="eager", fullgraph=True) if compile_it else function
        seen = []
        for number in range(3):
            random_grads([p for group in optimizer.param_groups for p in group["params"]], number)
            value = call()
            seen.append(torch.zeros(()) if value is None else torch.as_tensor(value, dtype=torch.float64).clone())
        results.append([*seen[1:], *everything(optimizer)])
    assert_same_bits(*results)


def test_a_refused_compiled_step_makes_no_states():
    optimizer = Adam([{"params": leaves((6, 50))}, {"params": leaves((7,))}])
    optimizer.param_groups[1]["betas"] = (2.0, 0.9)
    random_grads([p for group in optimizer.param_groups for p in group["params"]], 0)
    with pytest.raises(Exception, match=r"betas|Observed exception"):
        compiled(optimizer, backend="eager")()
    assert not optimizer.state


def test_graphs_let_go_of_their_own_optimizer_alone():
    """Two in one graph: the tensors of the second stay where the first goes."""
    graphs_made = []

    def backend(graph, inputs):
        graphs_made.append(graph)
        return graph

    optimizers = [Adam(leaves((6, 50))) for _ in range(2)]

    def both():
        for optimizer in optimizers:
            optimizer.step()

    tensors = []
    for optimizer in optimizers:
        random_grads(optimizer.param_groups[0]["params"], 0)
    torch.compile(both, backend=backend, fullgraph=True)()
    for optimizer in optimizers:
        (param,) = optimizer.param_groups[0]["params"]
        tensors.append({id(param), *(id(state) for state in optimizer.state[param].values())})
    (graph,) = graphs_made

    def held():
        return {id(tensor) for tensor in (*graph._parameters.values(), *graph._buffers.values())}

    assert held() & tensors[0] and (rest := held() & tensors[1])
    del optimizers[0], optimizer, param
    torch.compiler.reset()
    gc.collect()
    assert held() == rest


def test_max_norm_of_numpy_set_between_steps():
    optimizer = Adam(leaves((6, 50)), max_norm=1.0)
    step = compiled(optimizer, backend="eager")
    for max_norm in (1.0, numpy.float32(0.5)):
        optimizer.max_norm = max_norm
        random_grads(optimizer.param_groups[0]["params"], 0)
        step()
    assert float(optimizer.grad_norm) > 0.5
