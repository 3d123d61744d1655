"""Bits that do not depend on the machine: checksums of steps whose every input is a small whole number times 2**-k.

The reference is computed on the machine itself, by its torch; these were written down. ``python -m
lrtricks_fused.tools.verify.frozen`` prints those of the reference here: what has changed in them is what a release has
to say.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .frozen_bits import FROZEN
from .inventory import REFERENCE, RICH, STORAGES, VARIANTS, Spec, Storage, Target, Variant, Work
from .stepping import gradients, make, params_of, set_grads

BF16 = torch.bfloat16
_SPREAD, _APART, _BITS = 0x9E3779B1, 0x85EBCA6B, 22


def whole(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of [-1, 1), by arithmetic of integers alone, modulo 2**32, before they are rounded to ``dtype``."""
    count = torch.Size(shape).numel()
    first = 1 + seed * _APART % 2**32
    words = (torch.arange(first, first + count, dtype=torch.int64) * _SPREAD) % 2**32
    words = (words ^ (words >> 15)) * _SPREAD % 2**32
    signed = (words >> (31 - _BITS)) - 2**_BITS
    return (signed.double() * 2.0**-_BITS).to(dtype).view(shape)


WORK = Work("frozen", (Spec((1300,)), Spec((3, 65)), Spec(())), 3, whole)
MORE_STEPS = Work("frozen, 8 steps", (Spec((700,)),), 8, whole)  # beyond RAdam's change of branch at step 6
_FURTHER: dict[str, dict[str, Any]] = {
    "centralized": dict(centralize=True),
    "clipped": dict(max_norm=0.5),
    "split masters": dict(storage=Storage("bf16", BF16), master="split"),
    "rounded stochastically": dict(storage=Storage("bf16", BF16, BF16), rounding="stochastic",
                                   state_rounding="stochastic"),
    "fp16, rounded stochastically": dict(storage=Storage("fp16", torch.float16), rounding="stochastic"),
    "bf16 states of fp32": dict(storage=Storage("fp32", torch.float32, BF16), state_rounding="stochastic"),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Steps of one optimizer; offloaded ones have bfloat16 gradients, mirrors and changed bits."""

    variant: Variant
    work: Work = WORK
    options: dict[str, Any] = field(default_factory=dict)
    offloaded: bool = False


def _scenes() -> dict[str, list[Scene]]:
    """Those of each checksum."""
    named = {
        str(variant): [*(Scene(variant, WORK, dict(storage=s)) for s in STORAGES), Scene(variant, MORE_STEPS)]
        for variant in VARIANTS
    }
    for variant in RICH:
        for name, options in _FURTHER.items():
            named[f"{variant.optimizer}, {name}"] = [Scene(variant, options=options)]
        named[f"{variant.optimizer}, offloaded"] = [Scene(variant, options=dict(track_changes=True), offloaded=True)]
    return named


SCENES = _scenes()


def _stepped(scene: Scene, target: Target) -> Iterator[Tensor]:
    """All that a scene leaves: parameters, states in the order of their names, and what is kept beside."""
    optimizer = make(target, scene.variant, scene.work, **scene.options)
    params = params_of(optimizer)
    grad_dtype = BF16 if scene.offloaded else params[0].dtype
    mirrors = {param: torch.empty_like(param, dtype=BF16) for param in params} if scene.offloaded else {}
    for param, mirror in mirrors.items():
        param.grad_dtype = BF16
        optimizer.mirror(param, mirror)
    for step in range(scene.work.steps):
        set_grads(params, [grad.to(grad_dtype) for grad in gradients(params, scene.work, step)])
        optimizer.step()
    for param in params:
        state = optimizer.state[param]
        yield from (param, *(state[key] for key in sorted(state) if isinstance(state[key], Tensor)))
    yield from mirrors.values()
    if optimizer.track_changes:
        for change in optimizer.pop_changes().values():
            yield from (change.bitmap, change.values)


def checksum(target: Target, name: str) -> int:
    """CRC-32 of all that the scenes of that name leave."""
    crc = 0
    for scene in SCENES[name]:
        for tensor in _stepped(scene, target):
            crc = zlib.crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes(), crc)
    return crc


def check_frozen(target: Target, *, name: str) -> str | None:
    """The steps of that name have the checksum that was written down."""
    got = checksum(target, name)
    return None if got == FROZEN[name] else f"checksum {got:08x}, not {FROZEN[name]:08x}"


if __name__ == "__main__":
    for each in SCENES:
        print(f'    "{each}": 0x{checksum(REFERENCE, each):08X},')
