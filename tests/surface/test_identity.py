"""Keep decisions go with a parameter's name, whatever optimizer, group, order, wrapper or process it is in."""

import copy
import io
import pickle
import re
import zlib
from functools import partial

import pytest
import ranks
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves, random_grads, same_bits, train
from inventory import RICH
from torch import nn

import lrtricks_fused as lrt
from lrtricks_fused.optim import identity
from lrtricks_fused.step.keep import keep_mask

STEPS = 4
OPTIONS = dict(lr=0.01, keep_prob=0.5, seed=3)
by_name = pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)


class Net(nn.Module):
    """Seven parameters of four kinds; the same ones each time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(12, 10), nn.Linear(10, 7)
        self.c = nn.Sequential(nn.Linear(7, 5), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        """The model's output."""
        return self.c(self.b(self.a(x).relu())) * self.scale


def named(model):
    return list(model.named_parameters())


def drive(model, optimizers, steps=range(STEPS)):
    """Steps with gradients that follow from the names alone; the parameters in the plain model's order."""
    own = {identity.canonical(name): param for name, param in model.named_parameters()}
    for step in steps:
        for name, param in own.items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + step)
            param.grad = torch.randn(param.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return [own[name].detach().clone() for name, _ in Net().named_parameters()]


def plain(steps=range(STEPS)):
    """What the single plain optimizer makes of the model."""
    model = Net()
    return drive(model, [lrt.Adam(model.named_parameters(), **OPTIONS)], steps)


# -- where the number comes from ---------------------------------------------------------------------------------------


def test_a_name_gives_its_crc32_and_no_name_the_index():
    model = Net()
    optimizer, unnamed = lrt.Adam(named(model), **OPTIONS), lrt.Adam(Net().parameters(), **OPTIONS)
    for each in (optimizer, unnamed):
        train(each, range(1))
    numbers = [optimizer.state[param]["identity"] for param in model.parameters()]
    assert numbers == [zlib.crc32(name.encode()) for name, _ in named(model)]
    assert all(type(number) is int for number in numbers) and max(numbers) > 2**31
    assert [state["identity"] for state in unnamed.state.values()] == list(range(7))


@by_name
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_backend_draws_by_it(case, backend):
    params = leaves((700,), (3, 5))
    optimizer = case.make(zip(["weight", "bias"], params, strict=True), keep_prob=0.5, backend=backend)
    for step in (1, 2):
        before = [param.detach().clone() for param in params]
        masks = [optimizer.keep_mask(param, step) for param in params]
        train(optimizer, range(step, step + 1))
        for name, param, old, mask in zip(["weight", "bias"], params, before, masks, strict=True):
            assert torch.equal(param != old, mask)
            assert torch.equal(mask, keep_mask(param.shape, 0.5, 0, step, zlib.crc32(name.encode())))


def test_bits_without_names_are_those_of_the_index_also_of_a_later_group():
    params = leaves((700,), (700,), (700,))
    optimizer = lrt.SGD(params[:1], lr=1.0, keep_prob=0.5)
    train(optimizer, range(1))
    optimizer.add_param_group({"params": params[1:]})
    for param, index in zip(params, range(3), strict=True):
        assert torch.equal(optimizer.keep_mask(param, 5), keep_mask(param.shape, 0.5, 0, 5, index))


def test_an_index_that_another_has_is_not_drawn_twice():
    params = leaves((700,), (700,), (700,), (700,))
    optimizer = lrt.SGD([{"params": [param]} for param in params[:3]], lr=1.0, keep_prob=0.5)
    train(optimizer, range(1))
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": params[3:]})  # at index 2, as the third was
    expected = optimizer.keep_mask(params[3], 1)
    before = params[3].detach().clone()
    train(optimizer, range(1))
    assert [optimizer.state[param]["identity"] for param in params[1:]] == [1, 2, 3]
    assert torch.equal(params[3] != before, expected)


@pytest.mark.parametrize("name", [
    "module.a.weight", "_orig_mod.a.weight", "a._checkpoint_wrapped_module.weight", "module._orig_mod.a.weight",
    "_fsdp_wrapped_module.a._fsdp_wrapped_module.weight",
])  # fmt: skip
def test_wrappers_leave_no_trace_in_a_name(name):
    assert identity.canonical(name) == "a.weight" and identity.of_name(name) == zlib.crc32(b"a.weight")
    assert identity.canonical("modules.a_orig_mod.weight") == "modules.a_orig_mod.weight"


# -- the same bits as the single plain optimizer -----------------------------------------------------------------------


def no_decay(pairs, with_names):
    """Two groups, as for weight decay, in the order of transformers' Trainer."""
    groups = [[pair for pair in pairs if pair[1].dim() > 1], [pair for pair in pairs if pair[1].dim() <= 1]]
    return [{"params": [pair if with_names else pair[1] for pair in group]} for group in groups]


ARRANGEMENTS = {
    "names=model": lambda m: [lrt.Adam(m.parameters(), names=m, **OPTIONS)],
    "names=pairs": lambda m: [lrt.Adam(m.parameters(), names=m.named_parameters(), **OPTIONS)],
    "two groups": lambda m: [lrt.Adam(no_decay(named(m), True), **OPTIONS)],
    "two groups, names=model": lambda m: [lrt.Adam(no_decay(named(m), False), names=m, **OPTIONS)],
    "reversed": lambda m: [lrt.Adam(named(m)[::-1], **OPTIONS)],
    "one group each": lambda m: [lrt.Adam([{"params": [pair]} for pair in named(m)][::-1], **OPTIONS)],
    "one optimizer each": lambda m: [lrt.Adam([pair], **OPTIONS) for pair in named(m)],
    "one each, names=model": lambda m: [lrt.Adam([param], names=m, **OPTIONS) for param in m.parameters()],
    "stages": lambda m: [lrt.Adam(named(m)[:3], **OPTIONS), lrt.Adam(named(m)[3:], **OPTIONS)],
    "layer_groups": lambda m: [lrt.Adam(lrt.layer_groups(m, ["b", "a"], named=True), **OPTIONS)],
    "reference": lambda m: [lrt.Adam(named(m), backend="reference", **OPTIONS)],
}  # fmt: skip


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_any_arrangement(arrangement):
    model = Net()
    assert_same_bits(drive(model, ARRANGEMENTS[arrangement](model)), plain())


def test_a_later_group_may_be_named_by_the_model_too():
    model = Net()
    optimizer = lrt.Adam(model.a.parameters(), names=model, **OPTIONS)
    rest = [param for name, param in named(model) if not name.startswith("a.")]
    optimizer.add_param_group({"params": rest, "names": model})
    assert all("names" not in group for group in [*optimizer.param_groups, optimizer.defaults])
    assert_same_bits(drive(model, [optimizer]), plain())


def wrapped_checkpoints(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model.a, model.c = checkpoint_wrapper(model.a), checkpoint_wrapper(model.c)
    return model


WRAPPED = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "checkpoints": wrapped_checkpoints,
    "both": lambda m: torch.compile(wrapped_checkpoints(m), backend="eager"),
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_models(how):
    model = WRAPPED[how](Net())
    optimizer = lrt.Adam(no_decay(named(model), False), names=model, **OPTIONS)
    assert any(identity.canonical(name) != name for name, _ in named(model))
    assert_same_bits(drive(model, [optimizer]), plain())


def test_parameters_swapped_after_construction_keep_their_names():
    model, other = Net(), Net()
    optimizer = lrt.Adam(no_decay(named(model), False), names=model, **OPTIONS)
    new = dict(zip(model.parameters(), other.parameters(), strict=True))
    for group in optimizer.param_groups:  # as accelerate does once the model is sharded
        group["params"] = [new[param] for param in group["params"]]
    assert_same_bits(drive(other, [optimizer]), plain())


def _two_ranks(rank, size):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    expected = plain()
    model = nn.parallel.DistributedDataParallel(Net())
    assert_same_bits(drive(model, [lrt.Adam(no_decay(named(model), False), names=model, **OPTIONS)]), expected)
    for as_option in (False, True):
        model = Net()
        adam, options = (lrt.Adam, {"names": model}) if as_option else (partial(lrt.Adam, names=model), {})
        zero = ZeroRedundancyOptimizer(model.parameters(), adam, **options, **OPTIONS)
        assert 0 < sum(len(group["params"]) for group in zero.optim.param_groups) < 7
        assert_same_bits(drive(model, [zero]), expected)
    model = Net()  # which has all of the constructor's arguments in its groups, and copies these before every step
    adam = dict(names=model, backend="native", track_changes=True, max_norm=None, rounding="nearest")
    assert_same_bits(drive(model, [ZeroRedundancyOptimizer(model.parameters(), lrt.Adam, **adam, **OPTIONS)]), expected)
    model = Net()
    with pytest.raises(ValueError, match="Invalid param_names: 7 names of"):
        ZeroRedundancyOptimizer([{"params": list(model.parameters()), "param_names": [n for n, _ in named(model)]}],
                                lrt.Adam, **OPTIONS)  # fmt: skip


def test_replicas_and_zero_redundancy():
    ranks.run(_two_ranks, 2)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
@by_name
def test_a_compiled_first_step(case):
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        params = leaves((700,), (6, 5))
        optimizer = case.make(zip("ab", params, strict=True), keep_prob=0.5, backend="native")
        step = torch.compile(optimizer.step, fullgraph=True, backend="eager") if compiled else optimizer.step
        for number in range(2):
            random_grads(params, number)
            step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def through_a_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(model, saved, make):
    """A new model and its optimizer, which go on where the others were."""
    fresh = Net()
    fresh.load_state_dict(model.state_dict())
    optimizer = make(fresh)
    optimizer.load_state_dict(saved)
    return fresh, optimizer


MAKERS = {
    "named": lambda m: lrt.Adam(named(m), lr=9.0),
    "unnamed": lambda m: lrt.Adam(m.parameters(), lr=9.0),
    "names=model": lambda m: lrt.Adam(m.parameters(), lr=9.0, names=m),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("through", [copy.deepcopy, through_a_file], ids=["copy", "file"])
def test_a_checkpoint_carries_the_identities(maker, through):
    model = Net()
    optimizer = lrt.Adam(named(model), **OPTIONS)
    drive(model, [optimizer], range(2))
    fresh, other = resumed(model, through(optimizer.state_dict()), MAKERS[maker])
    assert ("param_names" in other.param_groups[0]) == (maker != "unnamed")
    assert_same_bits(drive(fresh, [other], range(2, 4)), plain())


def test_there_and_back_through_torch():
    model = Net()
    optimizer = lrt.Adam(named(model), **OPTIONS)
    drive(model, [optimizer], range(2))
    twin = torch.optim.Adam(Net().parameters())
    twin.load_state_dict(through_a_file(optimizer.state_dict()))
    fresh, other = resumed(model, through_a_file(twin.state_dict()), MAKERS["unnamed"])
    assert_same_bits(drive(fresh, [other], range(2, 4)), plain())


# With options of their own: torch does not hand on those of groups that were cut in another way.
REGROUPED = {
    "the same": lambda m: lrt.Adam(no_decay(named(m), False), names=m, **OPTIONS),
    "one group": lambda m: lrt.Adam(m.parameters(), names=m, **OPTIONS),
    "one group, unnamed": lambda m: lrt.Adam(m.parameters(), **OPTIONS),
    "one group each": lambda m: lrt.Adam([{"params": [pair]} for pair in named(m)][::-1], **OPTIONS),
}


@pytest.mark.parametrize("regrouped", REGROUPED)
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("through", [copy.deepcopy, through_a_file], ids=["copy", "file"])
def test_state_dicts_by_names_in_another_grouping(flatten, regrouped, through):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, fresh = Net(), Net()
    optimizer = lrt.Adam(no_decay(named(model), False), names=model, **OPTIONS)
    drive(model, [optimizer], range(2))
    saved = through(get_optimizer_state_dict(model, optimizer, options=options))
    fresh.load_state_dict(model.state_dict())
    other = REGROUPED[regrouped](fresh)
    set_optimizer_state_dict(fresh, other, saved, options=options)
    assert_same_bits(drive(fresh, [other], range(2, 4)), plain())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_do_not_hold_the_model_and_draw_alike(copier):
    model = Net()
    optimizer = lrt.Adam(model.parameters(), names=model, **OPTIONS)
    assert not any(isinstance(value, nn.Module) for value in [*vars(optimizer).values(), *optimizer.defaults.values()])
    copied = copier(optimizer)
    for param, twin in zip(model.parameters(), copied.param_groups[0]["params"], strict=True):
        assert torch.equal(copied.keep_mask(twin, 3), optimizer.keep_mask(param, 3))


def test_a_checkpoint_of_torch_is_drawn_by_name_or_index():
    model = Net()
    twin = torch.optim.Adam(model.parameters())
    drive(model, [twin], range(2))
    for maker, numbers in (
        ("named", [zlib.crc32(name.encode()) for name, _ in named(model)]),
        ("unnamed", [*range(7)]),
    ):
        _, optimizer = resumed(model, twin.state_dict(), MAKERS[maker])
        assert [state["identity"] for state in optimizer.state.values()] == numbers


@pytest.mark.parametrize("maker", MAKERS)
def test_a_checkpoint_of_an_earlier_version_goes_on_by_index(maker):
    results = []
    for earlier in (False, True):
        model = Net()
        optimizer = lrt.Adam(model.parameters(), **OPTIONS)
        model.scale.requires_grad_(False)
        drive(model, [optimizer], range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values() if earlier else ():
            del state["identity"]
        fresh, other = resumed(model, saved, MAKERS[maker] if earlier else MAKERS["unnamed"])
        results.append(drive(fresh, [other], range(2, 4)))
    assert_same_bits(*results)


@pytest.mark.parametrize("loads", [False, True])
def test_a_state_that_was_only_asked_for_leaves_the_parameter_its_name(loads):
    params = leaves((700,), (300,))
    optimizer = lrt.SGD([("first", params[0]), ("second", params[1])], lr=1.0, keep_prob=0.5)
    params[0].grad = torch.ones(700)
    optimizer.step()
    assert optimizer.state[params[1]] == {}  # which is an entry from now on, that checkpoints have
    if loads:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before, params[1].grad = params[1].detach().clone(), torch.ones(300)
    optimizer.step()
    assert torch.equal(params[1] != before, keep_mask(before.shape, 0.5, 0, 1, zlib.crc32(b"second")))


def test_a_pickle_of_an_earlier_version_goes_on_by_index():
    (param,) = leaves((700,))
    optimizer = lrt.SGD([("weight", param)], lr=1.0, momentum=0.9, dampening=0.5, keep_prob=0.5)
    train(optimizer, range(1))
    del optimizer.state[param]["identity"]
    other = pickle.loads(pickle.dumps(optimizer))
    (mine,) = other.param_groups[0]["params"]
    before = mine.detach().clone()
    train(other, range(1, 2))
    assert torch.equal(mine != before, keep_mask(mine.shape, 0.5, 0, 2, 0))
    train(optimizer, range(1, 2))
    expected = 0.9 * leaves_grad(0) + 0.5 * leaves_grad(1)  # dampened: no first step again
    torch.testing.assert_close(other.state[mine]["momentum_buffer"], expected)


def leaves_grad(step):
    (param,) = leaves((700,))
    random_grads([param], step)
    return param.grad


def damaged(change):
    model = Net()
    optimizer = lrt.Adam(named(model), **OPTIONS)
    drive(model, [optimizer], range(1))
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"])
    return optimizer, saved


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, None, True, "7", torch.tensor(7)], ids=repr)
def test_what_is_no_identity_is_refused(value):
    optimizer, saved = damaged(lambda states: states[3].update(identity=value))
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=re.escape(f"Invalid state_dict: identity={value!r}: must be an int in")):
        optimizer.load_state_dict(saved)
    before.assert_unchanged()
    param = optimizer.param_groups[0]["params"][3]
    optimizer.state[param]["identity"] = value
    with pytest.raises(ValueError, match=re.escape(f"Invalid state identity={value!r}: must be an int in")):
        optimizer.step()


@pytest.mark.parametrize("value", [1.0, True], ids=repr)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_equals_an_identity_is_none(value, backend):
    params = [torch.ones(5, requires_grad=True) for _ in range(2)]
    optimizer = lrt.Adam(params, keep_prob=0.5, backend=backend)
    for param in params:
        param.grad = torch.ones(5)
    for _ in range(5):  # what is known of the operands is kept
        optimizer.step()
    assert optimizer.state[params[1]]["identity"] == 1
    optimizer.state[params[1]]["identity"] = value
    with pytest.raises(ValueError, match=f"Invalid state identity={value!r}: must be an int in"):
        optimizer.step()


def test_two_parameters_of_one_identity_are_refused():
    optimizer, saved = damaged(lambda states: [states[number].update(identity=5) for number in (2, 4)])
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"two parameters, of shapes \(10,\) and \(7,\), have identity=5"):
        optimizer.load_state_dict(saved)
    before.assert_unchanged()


def test_identities_of_other_parameters_are_refused():
    a, b = leaves((8,), (8,))
    optimizer, other = lrt.Adam([("a", a), ("b", b)]), lrt.Adam(zip("ba", leaves((8,), (8,)), strict=True))
    train(other, range(1))
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="of 'a' is that of 'b': the parameters are in another order"):
        optimizer.load_state_dict(other.state_dict())
    before.assert_unchanged()


def test_two_names_may_share_a_number_by_chance():
    assert identity.of_name("plumless") == identity.of_name("buckeroo")  # a known collision of CRC-32
    optimizer, other = (lrt.Adam(zip(["plumless", "buckeroo"], leaves((8,), (8,)), strict=True)) for _ in range(2))
    train(optimizer, range(1))
    other.load_state_dict(optimizer.state_dict())
    assert_same_bits(everything(other)[1:4], everything(optimizer)[1:4])


# -- names that do not fit ---------------------------------------------------------------------------------------------

X, Y = leaves((3,), (2, 2))
REFUSED = {
    "partly named": (lambda: lrt.Adam([("x", X), Y]), ValueError, "Some param names are missing"),
    "one group named": (lambda: lrt.Adam([{"params": [("x", X)]}, {"params": [Y]}]), ValueError, "with/without names"),
    "missing": (lambda: lrt.Adam([X, Y], names=[("x", X)]), ValueError,
                r"Invalid names: 1 of 2 parameters have none \(of shapes \(2, 2\)\)"),
    "equal": (lambda: lrt.Adam([("x", X), ("x", Y)]), ValueError, "Invalid param_names: 'x' and 'x' are the same name"),
    "equal but for a wrapper": (lambda: lrt.Adam([{"params": [("x", X)]}, {"params": [("module.x", Y)]}]), ValueError,
                                "'module.x' and 'x' are the same name"),
    "no string": (lambda: lrt.Adam([(1, X)]), TypeError, "Invalid param_names: 1 is not a name"),
    "too few": (lambda: lrt.Adam([{"params": [X, Y], "param_names": ["x"]}]), ValueError,
                "Invalid param_names: 1 names of 2 parameters"),
    "no pairs": (lambda: lrt.Adam([X], names=[X]), TypeError, "Invalid names: Tensor is no pair"),
    "a dict": (lambda: lrt.Adam([X], names={"x": X}), TypeError, "Invalid names: 'x' is no pair"),
    "a string": (lambda: lrt.Adam([X], names="x"), TypeError, "Invalid names of type str"),
    "no iterable": (lambda: lrt.Adam([X], names=3), TypeError, "Invalid names of type int"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_names_that_do_not_fit_are_refused(what):
    make, error, text = REFUSED[what]
    with pytest.raises(error, match=text):
        make()


def test_a_group_that_is_refused_changes_nothing():
    model = Net()
    optimizer = lrt.Adam(model.a.parameters(), names=model, **OPTIONS)
    drive(model, [optimizer], range(1))
    before = Snapshot(optimizer)
    for group in ({"params": [("a.weight", X)]}, {"params": [X]}, {"params": [X], "names": model}):
        with pytest.raises(ValueError, match="name"):
            optimizer.add_param_group(group)
        before.assert_unchanged()


@pytest.mark.parametrize("change", [lambda group: group["param_names"].pop(), lambda group: group["params"].append(X)])
def test_a_group_changed_afterwards_is_refused(change):
    model = Net()
    optimizer = lrt.Adam(named(model), **OPTIONS)
    change(optimizer.param_groups[0])
    X.grad = torch.ones_like(X)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"Invalid param_names: \d names of \d parameters"):
        optimizer.step()
    before.assert_unchanged()


def test_the_first_of_several_names_counts():
    pairs = [("x", X), ("tied", X), ("y", Y)]
    assert lrt.Adam([X, Y], names=pairs).param_groups[0]["param_names"] == ["x", "y"]


def test_a_load_leaves_the_names_as_they_are():
    model = Net()
    optimizer, other = lrt.Adam(named(model)), lrt.Adam([(f"other.{n}", p) for n, p in named(Net())])
    optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in named(model)]
    assert same_bits(optimizer.keep_mask(model.scale, 1), lrt.Adam(named(model)).keep_mask(model.scale, 1))


def test_a_group_that_its_user_edits_has_the_users_names():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    other = torch.nn.Parameter(torch.ones(4))
    for steps in (0, 2):
        optimizer = lrt.SGD(model.parameters(), names=model, keep_prob=0.5)
        (group,) = optimizer.param_groups
        train(optimizer, range(steps))
        group["params"][0], group["param_names"][0] = other, "other"
        optimizer.keep_mask(other, 1)
        train(optimizer, range(steps, steps + 1))
        assert optimizer.state[other]["identity"] == zlib.crc32(b"other") and group["param_names"][0] == "other"
        del group["params"][1], group["param_names"][1]
        group["params"].append(torch.nn.Parameter(torch.ones(5)))
        group["param_names"].append("more")
        train(optimizer, range(steps + 1, steps + 2))
        assert optimizer.state[group["params"][-1]]["identity"] == zlib.crc32(b"more")
