"""The argument max_norm: what it may be, what keeps it, and what it leaves as it was."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from helpers import Snapshot, assert_same_bits, everything, leaves, random_grads, train
from inventory import CLASSES, RICH

import lrtricks_fused as lrt

BAD = [
    *((value, ValueError, str(value)) for value in (-1.0, math.nan, -math.inf)),
    ("1", TypeError, "'1'"),
    (torch.tensor(-0.5), ValueError, "-0.5"),
    (torch.ones(2), ValueError, "(2,)"),
    (torch.ones((), device="meta"), ValueError, "meta"),
]
bad = pytest.mark.parametrize(("value", "error", "text"), BAD)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])


@bad
@pytest.mark.parametrize("cls", CLASSES)
def test_bad_at_construction(cls, value, error, text):
    with pytest.raises(error, match=rf"Invalid max_norm.*{re.escape(text)}"):
        cls(leaves((3,)), max_norm=value)


@bad
@both_backends
def test_bad_later_changes_nothing(value, error, text, backend):
    params = leaves((700,), (5,))
    optimizer = lrt.Adam([{"params": params[:1]}, {"params": params[1:]}], max_norm=0.5, backend=backend)
    train(optimizer, range(2))
    norm, before = optimizer.grad_norm, Snapshot(optimizer)
    optimizer.max_norm = value
    with pytest.raises(error, match=rf"Invalid max_norm.*{re.escape(text)}"):
        optimizer.step()
    before.assert_unchanged()
    assert optimizer.grad_norm is norm


@both_backends
def test_a_refused_second_group_leaves_the_norm(backend):
    params = leaves((700,), (5,))
    optimizer = lrt.Adam([{"params": params[:1]}, {"params": params[1:]}], max_norm=0.5, backend=backend)
    train(optimizer, range(1))
    norm = optimizer.grad_norm
    random_grads(params, 1)
    optimizer.state[params[1]]["step"].fill_(-1.0)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="step=-1"):
        optimizer.step()
    before.assert_unchanged()
    assert optimizer.grad_norm is norm


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5]).double()])
def test_any_librarys_number(number):
    results = []
    for max_norm in (number, 0.5):
        optimizer = lrt.Adam(leaves((70,)), max_norm=max_norm)
        train(optimizer, range(2))
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_keep_it(case, copier):
    optimizer = case.make(leaves((700,), (5,)), keep_prob=0.5, max_norm=0.5)
    train(optimizer, range(2))
    twin = copier(optimizer)
    train(optimizer, range(2, 4))
    train(twin, range(2, 4))
    assert_same_bits([twin.grad_norm, *everything(twin)], [optimizer.grad_norm, *everything(optimizer)])


def test_checkpoints_are_those_of_an_optimizer_that_does_not_clip():
    optimizer = lrt.Adam(leaves((7,)), max_norm=0.5)
    train(optimizer, range(2))
    assert "max_norm" not in optimizer.state_dict()["param_groups"][0]
    other = lrt.Adam(leaves((7,)), max_norm=2.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.max_norm == 2.0


def test_what_an_earlier_version_has_pickled_does_not_clip():
    optimizer = lrt.Adam(leaves((7,)))
    state = optimizer.__getstate__()
    del state["max_norm"], state["_measured"]
    old = lrt.Adam.__new__(lrt.Adam)
    old.__setstate__(state)
    random_grads([param for group in old.param_groups for param in group["params"]], 0)
    old.step()
    assert old.max_norm is None and old.grad_norm is None


@both_backends
def test_a_users_own_clipping_goes_before(backend):
    # As Lightning and accelerate clip: .grad itself, before the step.
    results = []
    for max_norm in (None, 10.0):
        params = leaves((70,), (5,))
        optimizer = lrt.SGD(params, max_norm=max_norm, backend=backend)
        random_grads(params, 0)
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)
    torch.testing.assert_close(float(optimizer.grad_norm), 0.5, rtol=1e-5, atol=0)
