"""What follows from a group's values is kept between steps; whatever changes of them must be seen by the next step."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from helpers import assert_same_bits, everything, leaves, random_grads

import lrtricks_fused as lrt


def stepped(optimizer, steps=1, first=0):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(first, first + steps):
        random_grads(params, step)
        optimizer.step()
    return optimizer


def change(name, value):
    def apply(group):
        group[name] = value

    return apply


def in_place(group):
    group["betas"][0] = 0.5


CHANGES = {
    "lr": change("lr", 0.03), "keep_prob": change("keep_prob", 0.25), "seed": change("seed", 11),
    "weight_decay": change("weight_decay", 0.1), "amsgrad": change("amsgrad", True),
    "betas": change("betas", (0.5, 0.9)),
    "maximize": change("maximize", True), "centralize": change("centralize", True), "a list's element": in_place,
    "lr, a tensor": change("lr", torch.tensor(0.03)), "eps, a tensor": change("eps", torch.tensor(1e-3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    options = dict(lr=0.01, keep_prob=0.5, betas=[0.8, 0.9] if name == "a list's element" else (0.8, 0.9))
    ours = stepped(lrt.Adam(leaves((70, 3)), **options), 2)
    fresh = stepped(lrt.Adam(leaves((70, 3)), **options), 2)
    for optimizer in (ours, fresh):
        CHANGES[name](optimizer.param_groups[0])
    fresh._checked_groups.clear()  # knows nothing
    for optimizer in (ours, fresh):
        stepped(optimizer, 2, 2)
    assert_same_bits(everything(ours), everything(fresh))


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("keep_prob", 2.0), ("eps", "x"), ("grad_weight", -0.5)])
def test_an_invalid_change_is_refused(name, value):
    optimizer = stepped(lrt.Adam(leaves((7,))), 2)
    optimizer.param_groups[0][name] = value
    with pytest.raises((ValueError, TypeError), match=f"Invalid {name}"):
        optimizer.step()


def test_what_the_check_reads_of_the_optimizer():
    optimizer = lrt.SGD(leaves((7,)), lr=0.1, grad_weight=0.5)
    optimizer.allow_negative_grad_weight = True
    optimizer.param_groups[0]["grad_weight"] = -0.5
    stepped(optimizer)
    optimizer.allow_negative_grad_weight = False
    with pytest.raises(ValueError, match="Invalid grad_weight"):
        stepped(optimizer)


def test_a_group_that_has_gone_holds_no_parameter():
    kept, gone = leaves((3,), (5,))
    optimizer = stepped(lrt.SGD([{"params": [kept]}, {"params": [gone]}], lr=0.1), 2)
    reference = weakref.ref(gone)
    del optimizer.param_groups[1], optimizer.state[gone]
    del gone
    stepped(optimizer, 2)
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_know_their_own_groups(copier):
    optimizer = stepped(lrt.Adam(leaves((9,)), keep_prob=0.5), 2)
    twin = copier(optimizer)
    twin.param_groups[0]["lr"] = 0.5
    before = everything(optimizer)
    stepped(twin)
    assert_same_bits(everything(optimizer), before)


def test_a_pickle_of_an_earlier_version():
    optimizer = stepped(lrt.Adam(leaves((9,)), keep_prob=0.5), 2)
    state = optimizer.__getstate__()
    del state["_checked_groups"]
    old = lrt.Adam.__new__(lrt.Adam)
    old.__setstate__(copy.deepcopy(state))
    assert_same_bits(everything(stepped(old)), everything(stepped(optimizer)))
