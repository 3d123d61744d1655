"""What the library says of Python's objects is what Python says of them itself."""

import pytest
import torch
from helpers import shrink_in_place

from lrtricks_fused.step import host, slots, watched

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


def set_as(tensor, view):
    tensor.data = view(tensor.data)


TENSORS = {
    "moved": moved,
    "swapped": lambda tensor: torch.utils.swap_tensors(tensor, torch.ones(5000)),
    "set": lambda tensor: tensor.set_(torch.ones(5000)),
    "resized to nothing": lambda tensor: tensor.untyped_storage().resize_(0),
    "a view from its second element": lambda tensor: tensor.set_(tensor[1:]),
    "another dtype": lambda tensor: set_as(tensor, lambda data: data.view(torch.int32)),
    "negated": lambda tensor: set_as(tensor, torch._neg_view),
    "other strides": lambda tensor: set_as(tensor, lambda data: data[:2500].view(50, 50).t().view(1, 50, 50)),
    "fewer elements": lambda tensor: set_as(tensor, lambda data: data[:4999]),
    "a storage that has shrunk where it is": shrink_in_place,
}


@pytest.mark.parametrize("looks", [0, 1, 2, 3])
@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.parametrize("what", TENSORS)
def test_tensors(what, place, looks, library):
    tensors = [torch.ones(5000) for _ in range(40)]
    held = watched.HeldTensors(tensors)
    assert all(held.have_stayed() for _ in range(looks))
    TENSORS[what](tensors[place])
    assert not held.have_stayed()


class Slotted:
    __slots__ = ("a", "b", "pad")

    def __init__(self, a, b):
        self.a, self.b, self.pad = a, b, None


class OfTwo(Slotted):
    __slots__ = ("c",)


class Unslotted:
    def __init__(self, a, b):
        self.a, self.b = a, b


KINDS = {
    "slots": lambda a, b: Slotted(a, b), "of a base": lambda a, b: OfTwo(a, b), "a dict": lambda a, b: Unslotted(a, b),
    "one object in two slots": lambda a, b: Slotted(a, a),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("which", [0, 39, 99])
def test_slots(kind, name, which, library):
    things = [KINDS[kind]([n], {n}) for n in range(100)]
    held = slots.HeldSlots(things, "a", "b")
    assert held.of("b") == [thing.b for thing in things]
    assert all(held.hold() for _ in range(3))
    looks_itself = library and kind in ("slots", "of a base")
    assert (held._words is not None) is looks_itself
    before = getattr(things[which], name)
    setattr(things[which], name, type(before)(before))
    assert not held.hold()
    setattr(things[which], name, before)
    assert held.hold()
    things[which].pad = 1
    assert held.hold() and slots.HeldSlots([], "a").hold()


def test_slots_of_several_kinds(library):
    things = [kind([n], {n}) for n, kind in enumerate([Slotted, OfTwo, Slotted, OfTwo])]
    held = slots.HeldSlots(things, "b")
    assert all(held.hold() for _ in range(3)) and (held._words is not None) is library
    things[3].b = set()
    assert not held.hold()
