"""What tensors may be beyond plain memory: stepped by what they stand for, or refused before anything is touched."""

import copy
import gc
import math
import subprocess
import sys
import textwrap
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import SCALAR_STATES, Snapshot, assert_same_bits, everything, leaves, random_grads, train
from inventory import RICH
from test_ops import NAMES, SCALARS, hyper_of, rule_of
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import lrtricks_fused as lrt
from lrtricks_fused.step.table import COLUMNS

by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])
SHAPE = (6, 50)


class Plain(torch.Tensor):
    """A subclass that steps as a tensor does."""


def negated(grad):
    return torch._neg_view(-grad)


def conjugated(grad):
    return torch.complex(torch.zeros_like(grad), -grad).conj().imag


def subclass(grad):
    return grad.as_subclass(Plain)


def collective(grad):
    from torch.distributed import _functional_collectives as collectives

    return collectives.all_reduce(grad, "sum", distributed.group.WORLD)


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@both_backends
@by_name
@pytest.mark.parametrize("kind", [negated, conjugated, subclass, collective], ids=lambda f: f.__name__)
def test_gradients_step_as_what_they_stand_for(case, kind, backend, one_process):
    results = []
    for of in (lambda grad: grad, kind):
        params = leaves((700,), SHAPE)
        optimizer = case.make(params, keep_prob=0.5, backend=backend)
        for step in range(4):
            random_grads(params, step)
            if step % 2:  # ordinary ones between: a table is there
                params[1].grad = of(params[1].grad)
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@both_backends
@by_name
def test_zero_tensors_are_gradients_of_zeros(case, backend):
    results = []
    for zeros in (torch.zeros, lambda shape: torch._efficientzerotensor(shape)):
        (param,) = leaves(SHAPE)
        optimizer = case.make([param], keep_prob=0.5, backend=backend)
        train(optimizer, range(2))
        param.grad = zeros(SHAPE)
        optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@both_backends
@by_name
@pytest.mark.parametrize("kind", [negated, subclass], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtypes", [(torch.float32, None), (torch.float16, None), (torch.float16, torch.float16)])
def test_parameters_and_states_step_as_what_they_stand_for(case, dtypes, kind, backend):
    results = []
    for of in (lambda tensor: tensor, kind):
        param = torch.nn.Parameter(of(leaves(SHAPE, dtype=dtypes[0])[0].detach()))
        optimizer = case.make([param], keep_prob=0.5, backend=backend, state_dtype=dtypes[1])
        train(optimizer, range(2))
        if kind is negated:
            optimizer.state[param] = {k: v if k in SCALAR_STATES else of(v) for k, v in optimizer.state[param].items()}
        train(optimizer, range(2, 4))
        results.append([tensor.resolve_neg().as_subclass(torch.Tensor) for tensor in everything(optimizer)])
    assert_same_bits(*results)


@by_name
@pytest.mark.parametrize("saved", [torch.float16, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_saved_states_are_loaded_as_what_they_stand_for(case, dtype, saved):
    optimizers = [case.make(leaves(SHAPE, dtype=dtype), keep_prob=0.5) for _ in range(2)]
    train(optimizers[0], range(2))
    checkpoint = optimizers[0].state_dict()
    for state in checkpoint["state"].values():
        state.update({name: value.to(saved) for name, value in state.items() if name not in SCALAR_STATES})
    results = []
    for of in (lambda tensor: tensor, negated):
        states = {0: {k: v if k in SCALAR_STATES else of(v) for k, v in checkpoint["state"][0].items()}}
        optimizers[1].load_state_dict({**checkpoint, "state": states})
        results.append([tensor.clone() for tensor in everything(optimizers[1])])
    assert_same_bits(*results)


@both_backends
@by_name
def test_parameters_that_share_memory_are_stepped_one_by_one(case, backend):
    # As torch's loops do: the second sees what the first has become. Large enough for several threads.
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        values = leaves((200_000,))[0].detach()
        params = [torch.nn.Parameter(values), torch.nn.Parameter(values[100:])]
        optimizer = case.make(params, keep_prob=0.5, backend=backend)
        train(optimizer, range(2))
        results.append(everything(optimizer))
    torch.set_num_threads(1)
    alone = [torch.nn.Parameter(leaves((200_000,))[0].detach())]
    alone.append(torch.nn.Parameter(alone[0].detach()[100:]))
    optimizer = case.make([{"params": [param]} for param in alone], keep_prob=0.5, backend="reference")
    train(optimizer, range(2))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], everything(optimizer))


def two_tensor():
    return TwoTensor(torch.ones(3), torch.ones(3))


def fake_tensor():
    with FakeTensorMode():
        return torch.ones(3)


def partial():
    from torch.distributed.tensor import DTensor, Partial, init_device_mesh

    return DTensor.from_local(torch.ones(3), init_device_mesh("cpu", (1,)), [Partial()])


@by_name
@pytest.mark.parametrize("make", [two_tensor, fake_tensor, partial], ids=lambda f: f.__name__)
def test_wrapper_subclasses_are_refused(case, make, one_process):
    wrapper = make()
    error, text = (ValueError, "with placements") if make is partial else (TypeError, "of type")
    with pytest.raises(error, match=f"Invalid parameter .*{text}"):
        case.make([torch.nn.Parameter(wrapper)])
    optimizer = case.make(leaves((3,)))
    train(optimizer, range(1))
    (param,) = optimizer.param_groups[0]["params"]
    before = Snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.add_param_group({"params": [torch.nn.Parameter(wrapper)]})
    before.assert_unchanged()
    name = [name for name in optimizer.state[param] if name != "identity"][-1]
    kept, optimizer.state[param][name] = optimizer.state[param][name], wrapper
    with pytest.raises(TypeError, match=f"state {name} of type {type(wrapper).__name__}"):
        optimizer.step()
    optimizer.state[param][name] = kept
    before.assert_unchanged()


@by_name
def test_shards_of_fsdp1_have_no_mask(case):
    (param,) = leaves((12,))
    param._fsdp_flattened = True
    for option in (dict(keep_prob=0.5), dict(keep_prob=torch.tensor(1.0)), dict(centralize=True)):
        (name,) = option
        with pytest.raises(ValueError, match=f"Invalid {name}=.*FullyShardedDataParallel.*fully_shard"):
            case.make([param], **option)
        optimizer = case.make([param])
        train(optimizer, range(1))
        optimizer.param_groups[0].update(option)
        for copied in (optimizer, copy.deepcopy(optimizer)):
            before = [tensor.clone() for tensor in everything(copied)]
            with pytest.raises(ValueError, match=f"Invalid {name}=.*FullyShardedDataParallel.*fully_shard"):
                copied.step()
            assert_same_bits(everything(copied), before)


@both_backends
@by_name
@pytest.mark.parametrize("which", ["parameter", "gradient", "state"])
def test_storages_resized_to_nothing(case, which, backend):
    params = leaves((700,), SHAPE)
    optimizer = case.make([{"params": [param]} for param in params], keep_prob=0.5, backend=backend)
    train(optimizer, range(2))
    random_grads(params, 2)
    state = [value for name, value in optimizer.state[params[1]].items() if name not in SCALAR_STATES]
    tensor = {"parameter": params[1].data, "gradient": params[1].grad, "state": (state or [params[1].data])[0]}[which]
    values, size = tensor.clone(), tensor.untyped_storage().nbytes()
    first = [params[0].detach().clone(), *copy.deepcopy([*optimizer.state[params[0]].values()])]
    for bytes_left in (0, 4):
        tensor.untyped_storage().resize_(bytes_left)
        with pytest.raises(ValueError, match=f"its storage of {bytes_left} bytes does not hold it"):
            optimizer.step()
    tensor.untyped_storage().resize_(size)
    tensor.copy_(values)
    assert_same_bits([params[0].detach(), *optimizer.state[params[0]].values()], first)
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


@both_backends
@by_name
@pytest.mark.parametrize("device", ["cuda:9999999", "meta"])
def test_no_tensor_lies_on_the_default_device(case, device, backend):
    results = []
    for other in (None, device):
        params = leaves((700,), SHAPE)
        optimizer = case.make(params, keep_prob=0.5, centralize=True, backend=backend)
        for step in range(3):
            random_grads(params, step)
            if other:
                torch.set_default_device(other)
            try:
                if step == 1:
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                optimizer.step()
                mask = optimizer.keep_mask(params[0], step + 1)
                if step == 1:
                    optimizer.add_param_group({"params": [params[0].detach().clone().requires_grad_()]})
            finally:
                torch.set_default_device(None)
        results.append([*everything(optimizer), mask])
    assert_same_bits(*results)


@both_backends
@by_name
def test_a_refused_first_step_leaves_no_states(case, backend):
    params = leaves((3,), (4,))
    optimizer = case.make([{"params": [param]} for param in params], backend=backend)
    random_grads(params, 0)
    params[1].data = params[1].data.double()
    with pytest.raises(ValueError, match="gradient of dtype"):
        optimizer.step()
    assert not optimizer.state


def edited(name, value):
    return lambda state: state.update({name: value})


def other(states, value):
    """The first state of its rule replaced."""
    return lambda state: state.update({states(state): value(state[states(state)])})


def first_state(state):
    return next(name for name in state if name not in SCALAR_STATES)


BAD_STATES = {
    **{f"step={step}": edited("step", step) for step in (-5, math.nan, math.inf, 1.5, 2**53, "3", 1j, None, True)},
    **{f"step={step}": edited("step", step) for step in (torch.tensor(-5.0), torch.zeros(2), torch.tensor(math.nan), [],
                                                         torch.tensor(1.5), torch.zeros((), device="meta"))},
    "integers": other(first_state, lambda t: t.long()),
    "sparse": other(first_state, lambda t: t.to_sparse()),
    "on meta": other(first_state, lambda t: t.to("meta")),
    "a shape": other(first_state, lambda t: t[..., :2]),
    "a number": other(first_state, lambda t: 1.0),
    "a wrapper": other(first_state, lambda t: TwoTensor(t, t)),
    "no memory": other(first_state, lambda t: without_memory(t.clone())),
    "one missing": lambda state: state.pop(first_state(state)),
    "no dict": None,
}  # fmt: skip


def without_memory(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


@by_name
@pytest.mark.parametrize("what", BAD_STATES)
def test_a_bad_checkpoint_changes_nothing(case, what):
    params = leaves((6, 5), (6, 5))
    optimizer = case.make([{"params": [param]} for param in params], keep_prob=0.5)
    train(optimizer, range(1))
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, range(1, 3))
    saved["param_groups"][0]["lr"] = 5.0
    if BAD_STATES[what] is None:
        saved["state"][1] = torch.ones(3)
    else:
        if what == "one missing" and first_state(saved["state"][1]) == "momentum_buffer" and case.ours is lrt.SGD:
            pytest.skip("torch.optim.SGD's checkpoints may lack it")
        BAD_STATES[what](saved["state"][1])
    before = Snapshot(optimizer)
    with pytest.raises((ValueError, TypeError), match="Invalid state") as raised:
        optimizer.load_state_dict(saved)
    before.assert_unchanged()
    assert "/" not in str(raised.value) and ".cpp" not in str(raised.value)


def test_entries_of_others_are_carried_along():
    params, twins = leaves((4,)), leaves((4,))
    optimizer, twin = lrt.Adam(params), torch.optim.Adam(twins)
    for each in (optimizer, twin):
        train(each, range(1))
        saved = copy.deepcopy(each.state_dict())
        saved["state"][0] |= {"mine": torch.ones(2, dtype=torch.float64), "nested": {"a": [1, torch.ones(1)]}}
        saved["state"]["all"] = 7
        each.load_state_dict(saved)
    for own, others in ((optimizer.state[params[0]], twin.state[twins[0]]),):
        assert own.keys() == others.keys() | {"identity"}
        assert own["mine"].dtype == others["mine"].dtype and own["nested"].keys() == others["nested"].keys()
    assert optimizer.state["all"] == twin.state["all"] == 7


@both_backends
@by_name
@pytest.mark.parametrize("step", [-1.0, -5.0, math.nan, 1.5, math.inf, 2.0**53])
def test_a_step_count_that_is_none(case, step, backend):
    params = leaves((700,), (5,))
    optimizer = case.make([{"params": [param]} for param in params], keep_prob=0.5, backend=backend)
    train(optimizer, range(2))
    random_grads(params, 2)
    optimizer.state[params[1]]["step"].fill_(step)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"step=.*must be a whole number in \[0, 2\*\*53\)"):
        optimizer.step()
    before.assert_unchanged()


def run_op(name, states, step=0.0, device="cpu", grads=None):
    ones = torch.ones(1000, device=device)
    numbers = [[torch.ones((), dtype=torch.float64, device=device)] for _ in rule_of(name).scalar_states]
    steps = [torch.tensor(step, dtype=torch.float64, device=device)]
    operands = [ones], grads or [ones.clone()], *states, *numbers, steps, [0]
    getattr(torch.ops.lrtricks_fused, name)(*operands, **hyper_of(name), **SCALARS)


@pytest.mark.parametrize("name", [name for name in NAMES if not rule_of(name).ring])
def test_ops_refuse_what_they_cannot_read(name):
    full = [[torch.zeros(1000)] for _ in rule_of(name).states]
    for missing in range(len(rule_of(name).required_states)):
        with pytest.raises(RuntimeError, match=r"Invalid \w+: there are none"):
            run_op(name, [*full[:missing], [], *full[missing + 1 :]])
    for step in (-1.0, math.nan, 0.5, 2.0**53):
        with pytest.raises(RuntimeError, match="Invalid step="):
            run_op(name, full, step)
    with pytest.raises(RuntimeError, match=r"Invalid grads\[0\]: its storage has 0 bytes"):
        run_op(name, full, grads=[without_memory(torch.ones(1000))])
    assert not any(bool(state.any()) for (state,) in full)
    with pytest.raises(NotImplementedError, match="meta"):
        run_op(name, [[state.to("meta")] for (state,) in full], device="meta")


def test_tables_are_int64_and_not_on_meta():
    call = torch.ops.lrtricks_fused.check_table
    no_int64, too_few = torch.zeros(1, COLUMNS), torch.zeros(1, COLUMNS - 1, dtype=torch.int64)
    for table, error in ((no_int64, "int64"), (too_few, f"{COLUMNS} columns")):
        with pytest.raises(RuntimeError, match=error):
            call(table)
    with pytest.raises(NotImplementedError, match="meta"):
        call(torch.zeros(1, COLUMNS, dtype=torch.int64, device="meta"))


NUMBERS = [np.float32, np.float64, np.array, Fraction, lambda x: torch.tensor(x, dtype=torch.float64)]


@both_backends
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_any_library(number, backend):
    results = []
    for of in (float, number):
        (param,) = leaves((700,))
        options = dict(lr=of(0.125), keep_prob=of(0.5), grad_weight=of(2.0))
        if of is not NUMBERS[-1]:
            options |= dict(betas=(of(0.5), of(0.75)), eps=of(0.25), weight_decay=of(0.5))
        else:
            options |= dict(betas=(0.5, 0.75), eps=0.25, weight_decay=0.5)
        optimizer = lrt.Adam([param], seed=3 if of is float else np.int64(3), amsgrad=np.bool_(True), backend=backend,
                             maximize=1, **options)  # fmt: skip
        train(optimizer, range(2))
        results.append(everything(optimizer))
    assert_same_bits(*results)


@both_backends
def test_momentum_switched_on_begins_with_the_undamped_gradient(backend):
    ours, theirs = leaves((50,)), leaves((50,))
    optimizers = lrt.SGD(ours, lr=0.1, backend=backend), torch.optim.SGD(theirs, lr=0.1)
    for optimizer in optimizers:
        train(optimizer, range(2))
        optimizer.param_groups[0].update(momentum=0.9, dampening=0.5)
        train(optimizer, range(2, 5))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)  # as inventory's float32, which says why


@both_backends
def test_removed_groups_go(backend):
    (param,) = leaves((3,))
    optimizer = lrt.Adam([param], backend=backend)
    train(optimizer, range(1))
    gone = []
    for _ in range(5):
        (new,) = leaves((1000,))
        gone.append(weakref.ref(new))
        optimizer.param_groups.pop()
        optimizer.state.clear()
        optimizer.add_param_group({"params": [new]})
        train(optimizer, range(1))
        del new
    gc.collect()
    assert [ref() is not None for ref in gone] == [False] * 4 + [True]


def test_a_thread_with_a_small_stack():
    # In a process of its own: an overflow would end it.
    script = textwrap.dedent("""
        import threading, torch, lrtricks_fused as lrt
        torch.set_num_threads(1)

        def step():
            for param in (torch.randn(40, 3000).t(), torch.randn(6, 5000)):
                param = torch.nn.Parameter(param)
                param.grad = torch.randn_like(param)
                lrt.Adam([param], keep_prob=0.5, centralize=True, backend="native").step()

        step()
        threading.stack_size(128 * 1024)
        thread = threading.Thread(target=step)
        thread.start(); thread.join()
        print("stepped")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "stepped\n"), done.stderr


def test_state_dtype_that_no_parameter_takes_warns():
    with pytest.warns(UserWarning, match=r"state_dtype=torch\.float16 is of no effect"):
        lrt.Adam(leaves((3,)), state_dtype=torch.float16)
