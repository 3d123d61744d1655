"""What the library says of Python's objects is what Python says of them itself."""

import pytest
import torch

from lrtricks_fused.step import host

pytestmark = pytest.mark.parametrize("library", [True, False], ids=["library", "Python"])


@pytest.fixture(autouse=True)
def _looks(library, monkeypatch):
    assert host.functions() is not None
    if not library:
        monkeypatch.setattr(host, "functions", lambda: None)


def removed(dicts):
    del dicts["b"]


def renamed(dicts):
    dicts["b"] = {"z" if key == "y" else key: value for key, value in dicts["b"].items()}


def exchanged(dicts):
    first, second = dicts["b"].items()
    dicts["b"] = dict([second, first])


DICTS = {
    "an entry is another": lambda dicts: dicts["b"].update(y=[2]),
    "an entry more, at the end": lambda dicts: dicts["c"].update(z=0),
    "an entry more, within": lambda dicts: dicts["a"].update(z=0),
    "an entry less": lambda dicts: dicts["c"].popitem(),
    "another name": renamed,
    "another order": exchanged,
    "another dict of the same": lambda dicts: dicts.update(a=dict(dicts["a"])),
    "a dict more": lambda dicts: dicts.update(e={}),
    "a dict less": removed,
    "no dict": lambda dicts: dicts.update(d=8),
    "none": lambda dicts: dicts.clear(),
}


@pytest.mark.parametrize("what", DICTS)
def test_entries(what, library):
    dicts = {"a": {"x": [1]}, "b": {"x": [2], "y": [2]}, "d": 7, "c": {"x": [3], "y": [3]}}
    held = host.HeldEntries(dicts)
    assert held.hold(dicts) and held.hold(dicts)
    DICTS[what](dicts)
    assert not held.hold(dicts) and host.HeldEntries(dicts).hold(dicts)


def test_no_entries_are_not_some(library):
    held = host.HeldEntries({})
    assert held.hold({}) and not held.hold({"a": {}}) and not held.hold({"a": 1})


def moved(tensor):
    tensor.data = tensor.data.clone()


TENSORS = {
    "moved": moved,
    "swapped": lambda tensor: torch.utils.swap_tensors(tensor, torch.ones(3)),
    "set": lambda tensor: tensor.set_(torch.ones(3)),
    "resized to nothing": lambda tensor: tensor.untyped_storage().resize_(0),
    "a view from its second element": lambda tensor: tensor.set_(tensor[1:]),
}


@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.parametrize("what", TENSORS)
def test_tensors(what, place, library):
    tensors = [torch.ones(3) for _ in range(40)]
    held = host.HeldTensors(tensors)
    assert all(held.have_stayed() for _ in range(3))
    TENSORS[what](tensors[place])
    assert not held.have_stayed()
