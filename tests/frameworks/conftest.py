"""What stands in for torchvision, which timm and fastai import."""

import importlib.util
import sys
from unittest.mock import MagicMock

import pytest

_MODULES = ("", ".datasets", ".models", ".models.feature_extraction", ".ops", ".ops.misc", ".transforms",
            ".transforms.functional")  # fmt: skip


@pytest.fixture
def no_torchvision(monkeypatch):
    """For timm and fastai alone, whose groups, schedulers and wrappers do not use it: others look whether it is there.

    PyPI has no CPU wheel of torchvision that goes with torch's.
    """
    if importlib.util.find_spec("torchvision") is None:
        for name in _MODULES:
            monkeypatch.setitem(sys.modules, f"torchvision{name}", MagicMock(__spec__=None))
