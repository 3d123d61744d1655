"""Functions that torch.compile must not trace, without the price of its wrapper where nothing is compiled."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which a compiled step runs as it is: addresses mean nothing to a tracer."""
    broken_out: Callable[P, R] = torch._disable_dynamo(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return (broken_out if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return run
