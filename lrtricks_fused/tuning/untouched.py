"""Contexts in which a model runs without a trace: its tensors, modes and the random generators are put back.

Used by the stability probe and by LossGrad.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Equal bits: NaN equals itself, and -0 is not 0."""
    return torch.equal(*(tensor.detach().reshape(-1).view(torch.uint8) for tensor in (left, right)))


def sharding_modules(model: nn.Module, *kinds: str) -> list[Any]:
    """The modules of these classes of torch.distributed.fsdp, which keep parameters unsharded for a while."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # there where one has been made
    found = tuple(kind for name in kinds if (kind := getattr(fsdp, name, None)) is not None)
    return [module for module in model.modules() if isinstance(module, found)]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Parameters, buffers, ``.grad``, ``requires_grad`` and every module's mode are restored at the end, bit for bit.

    Holds one copy of parameters and buffers meanwhile. A tensor is written only if it has changed, so that a graph
    that waits for its backward outside stays valid. Attributes that are neither are not watched.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    held: list[dict[str, Any]] = [store for module in modules for store in (module._parameters, module._buffers)]
    stores = [(store, dict(store)) for store in held]
    tensors = {id(t): t for _, entries in stores for t in entries.values() if t is not None}
    saved = [(t, t.detach().clone(), t.requires_grad, t.grad if t.is_leaf else None) for t in tensors.values()]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for store, entries in stores:
            store.clear()
            store.update(entries)
        with torch.no_grad():
            for tensor, values, requires_grad, grad in saved:
                if not same_bytes(tensor, values):
                    tensor.copy_(values)
                if tensor.is_leaf:
                    tensor.requires_grad_(requires_grad)
                    if tensor.grad is not grad:
                        tensor.grad = grad


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """The global generators of the CPU and of ``devices`` start from ``seed`` inside, and go on as before outside."""
    generators = [torch.default_generator]
    for device in {device for device in devices if device.type not in ("cpu", "meta")}:
        module = torch.get_device_module(device)
        index = module.current_device() if device.index is None else device.index
        generators.append(module.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics of ``model``'s normalization layers are put back at the end, bit for bit.

    In training mode a forward pass inside normalizes by its own batch, as outside.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in zip(buffers, saved, strict=True):
                buffer.copy_(values)


@contextmanager
def replayed(states: list[tuple[torch.Generator, Tensor]]) -> Iterator[None]:
    """Generators start from ``states`` inside, and go on as before outside."""
    present = [generator.get_state() for generator, _ in states]
    for generator, state in states:
        generator.set_state(state)
    try:
        yield
    finally:
        for (generator, _), state in zip(states, present, strict=True):
            generator.set_state(state)
