"""The arguments that all classes share: one record, from which signatures, documentation and checks come."""

import inspect
import typing

import pytest
import torch
from helpers import leaves
from inventory import CLASSES, RICH
from typing_extensions import Unpack

import lrtricks_fused as lrt
from lrtricks_fused.optim.arguments import ARGUMENTS, OF_GROUP, OF_OPTIMIZER, SharedArguments

by_class = pytest.mark.parametrize("cls", CLASSES)


def documented(cls):
    """The names in the section of arguments, each as often as it is there."""
    section = inspect.getdoc(cls).partition("\n\nArgs:\n")[2].partition("\n\n")[0]
    entries = [line.strip().partition(": ")[0] for line in section.splitlines() if line[4] != " "]
    return [name for entry in entries for name in entry.split(", ")]


@by_class
def test_every_argument_is_documented_once(cls):
    assert sorted(documented(cls)) == sorted(inspect.signature(cls).parameters)
    assert "\n\nRaises:\n    ValueError, TypeError: " in inspect.getdoc(cls)
    assert all(len(line) <= 120 for line in inspect.getdoc(cls).splitlines())


@by_class
def test_type_checkers_read_the_record(cls):
    assert typing.get_type_hints(cls.__init__)["shared"] == Unpack[SharedArguments]
    types = typing.get_type_hints(SharedArguments)
    assert list(types) == list(ARGUMENTS)
    parameters = inspect.signature(cls).parameters
    assert {name: parameters[name].annotation for name in types} == types


@by_class
def test_another_keyword_is_refused_in_pythons_words(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) got an unexpected keyword argument 'keep'"):
        cls(leaves((3,)), keep=0.5)


@pytest.mark.parametrize("case", RICH, ids=lambda c: c.name)
def test_where_each_argument_ends_up(case):
    optimizer = case.make(leaves((3,)))
    assert [name for name in optimizer.defaults if name in ARGUMENTS] == list(OF_GROUP)
    assert all(optimizer.defaults[name] == ARGUMENTS[name].default for name in OF_GROUP)
    assert {name: getattr(optimizer, name) for name in OF_OPTIMIZER} == {
        "backend": "auto",
        "state_dtype": None,
        "max_norm": None,
        "track_metrics": False,
        "rounding": "nearest",
        "state_rounding": "nearest",
        "track_changes": False,
    }


def test_a_subclass_may_have_a_constructor_of_its_own():
    class Halved(lrt.Adam):
        """Takes half the elements."""

        def __init__(self, params, **options):
            super().__init__(params, keep_prob=0.5, **options)

    assert Halved(leaves((3,)), seed=4, amsgrad=True).defaults["keep_prob"] == 0.5
    assert list(inspect.signature(Halved).parameters) == ["params", "options"]
    assert inspect.getdoc(Halved) == "Takes half the elements."


def test_a_state_dtype_without_effect_is_told_where_the_class_is_called():
    with pytest.warns(UserWarning, match="state_dtype=torch.float16 is of no effect") as warned:
        lrt.Adam(leaves((3,)), state_dtype=torch.float16)
    assert warned[0].filename == __file__
