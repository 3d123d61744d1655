"""The classes' signatures and help() texts, as recorded: what users call, and what type checkers and IDEs read."""

import inspect
from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from inventory import CLASSES
from torch import Tensor

import lrtricks_fused as lrt

by_class = pytest.mark.parametrize("cls", CLASSES)
Betas = tuple[float, float]
Dtype = torch.dtype | None
Master = Literal["split"] | None
Rounding = Literal["nearest", "stochastic"]
Names = torch.nn.Module | Iterable[tuple[str, Tensor]] | None


class Recorded:
    """The signatures, written as functions."""

    def SGD(
        params: Iterable, lr: float | Tensor = 1e-3, momentum: float = 0, dampening: float = 0, weight_decay: float = 0,
        nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None, differentiable: bool = False,
        fused: bool | None = None, keep_prob: float | Tensor = 1.0, grad_weight: float | Tensor = 1.0,
        centralize: bool = False, seed: int = 0, momentum_window: int | None = None, backend: str = "auto",
        state_dtype: Dtype = None, max_norm: float | None = None, track_metrics: bool = False,
        master: Master = None, rounding: Rounding = "nearest", state_rounding: Rounding = "nearest",
        track_changes: bool = False, names: Names = None,
    ) -> None: ...  # fmt: skip

    def Adam(
        params: Iterable, lr: float | Tensor = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        decoupled_weight_decay: bool = False, keep_prob: float | Tensor = 1.0, grad_weight: float | Tensor = 1.0,
        centralize: bool = False, seed: int = 0, backend: str = "auto", state_dtype: Dtype = None,
        max_norm: float | None = None, track_metrics: bool = False,
        master: Master = None, rounding: Rounding = "nearest", state_rounding: Rounding = "nearest",
        track_changes: bool = False, names: Names = None,
    ) -> None: ...  # fmt: skip

    def AdamW(
        params: Iterable, lr: float | Tensor = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        keep_prob: float | Tensor = 1.0, grad_weight: float | Tensor = 1.0, centralize: bool = False, seed: int = 0,
        backend: str = "auto", state_dtype: Dtype = None, max_norm: float | None = None, track_metrics: bool = False,
        master: Master = None, rounding: Rounding = "nearest", state_rounding: Rounding = "nearest",
        track_changes: bool = False, names: Names = None,
    ) -> None: ...  # fmt: skip

    def RMSprop(
        params: Iterable, lr: float | Tensor = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False, *, fused: bool | None = None,
        keep_prob: float | Tensor = 1.0, grad_weight: float | Tensor = 1.0, centralize: bool = False, seed: int = 0,
        backend: str = "auto", state_dtype: Dtype = None, max_norm: float | None = None, track_metrics: bool = False,
        master: Master = None, rounding: Rounding = "nearest", state_rounding: Rounding = "nearest",
        track_changes: bool = False, names: Names = None,
    ) -> None: ...  # fmt: skip

    def RAdam(
        params: Iterable, lr: float | Tensor = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        keep_prob: float | Tensor = 1.0, grad_weight: float | Tensor = 1.0, centralize: bool = False, seed: int = 0,
        backend: str = "auto", state_dtype: Dtype = None, max_norm: float | None = None, track_metrics: bool = False,
        master: Master = None, rounding: Rounding = "nearest", state_rounding: Rounding = "nearest",
        track_changes: bool = False, names: Names = None,
    ) -> None: ...  # fmt: skip

    def AdaBelief(
        params: Iterable, lr: float | Tensor = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-16,
        weight_decay: float = 0, decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        keep_prob: float | Tensor = 1.0, grad_weight: float | Tensor = 1.0, centralize: bool = False, seed: int = 0,
        backend: str = "auto", state_dtype: Dtype = None, max_norm: float | None = None, track_metrics: bool = False,
        master: Master = None, rounding: Rounding = "nearest", state_rounding: Rounding = "nearest",
        track_changes: bool = False, names: Names = None,
    ) -> None: ...  # fmt: skip


POSITIONAL = {
    "SGD": ["params", "lr", "momentum", "dampening", "weight_decay", "nesterov"],
    "Adam": ["params", "lr", "betas", "eps", "weight_decay", "amsgrad"],
    "AdamW": ["params", "lr", "betas", "eps", "weight_decay", "amsgrad"],
    "RMSprop": [
        "params", "lr", "alpha", "eps", "weight_decay", "momentum", "centered", "capturable", "foreach", "maximize",
        "differentiable",
    ],
    "RAdam": ["params", "lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"],
    "AdaBelief": ["params", "lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"],
}  # fmt: skip


def positional(function):
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", POSITIONAL)
def test_the_signature_is_the_recorded_one(name):
    cls = getattr(lrt, name)
    assert inspect.signature(cls) == inspect.signature(getattr(Recorded, name))  # but for the order of keywords
    assert positional(cls) == POSITIONAL[name]


@by_class
def test_the_constructor_tells_the_same_as_the_class(cls):
    first, *others = inspect.signature(cls.__init__).parameters.values()
    assert first.name == "self" and others == list(inspect.signature(cls).parameters.values())


@by_class
def test_the_positional_arguments_are_torchs_in_torchs_order(cls):
    twin = getattr(torch.optim, cls.__name__, None)
    assert twin is None or positional(twin) == positional(cls)
