"""torch.compile of a step, without a break of the graph: none anew for a schedule, and none outlives its optimizer."""

import copy
import gc
import weakref
from functools import partial

import numpy
import pytest
import torch
from compiled_steps import STEPS, compiled, fresh, graphs, run, scheduled  # noqa: F401 (fresh: a fixture)
from helpers import assert_same_bits, everything, leaves, random_grads
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lrtricks_fused import SGD, Adam, CosineKDecayLR


@pytest.mark.parametrize("backend", ["eager", "inductor"])
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


def test_several_optimizers_through_one_compiled_function():
    """Their integers differ, which makes them inputs of the graph; a seed takes 64 bits without a sign."""
    step = torch.compile(lambda optimizer: optimizer.step(), backend="eager", fullgraph=True)
    pairs = []
    for number, seed in enumerate((0, 5, 2**63 + 1, 2**64 - 1)):
        options = dict(lr=0.1, keep_prob=0.5, seed=seed, momentum_window=number + 2)
        pairs.append([SGD(leaves((5 + number, 6)), **options) for _ in range(2)])
    for one, other in pairs:
        assert_same_bits(run(one, partial(step, one)), run(other, other.step))


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
