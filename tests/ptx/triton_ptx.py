"""Steps by the PTX that Triton compiles ahead of time: its launcher hands it to the machine."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from held_tensors import allocations
from machine import parse
from machine.kernels import Kernel
from machine.launch import LaunchError, Machine

from lrtricks_fused.step import backends

FORMATS = {"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "?", "u8": "B", "u16": "H", "u32": "I",
           "u64": "Q", "fp32": "f", "f32": "f", "fp64": "d", "f64": "d"}  # fmt: skip
CACHE = Path(__file__).parents[2] / "build" / "ptx" / "triton"
SCRATCH_POINTERS = 2  # which Triton passes behind the arguments, and which these kernels do not use


def arguments_of(signature: Any, given: Any) -> Iterator[tuple[str, Any]]:
    """Type and value of each argument that is no constant, tuples unfolded."""
    for kind, value in zip(signature, given, strict=True):
        if isinstance(kind, (tuple, list)):
            yield from arguments_of(kind, value)
        elif kind != "constexpr":
            yield kind, value


def packed(kind: str, value: Any) -> bytes:
    """An argument as it lies in the parameter space, aligned to its size."""
    if kind.startswith("*"):
        return struct.pack("<Q", value if isinstance(value, int) else value.data_ptr())
    if kind not in FORMATS:
        raise LaunchError(f"an argument of type {kind}")
    size = struct.calcsize(FORMATS[kind])
    return struct.pack("<Q", value & 2 ** (8 * size) - 1)[:size] if isinstance(value, int) else struct.pack(
        f"<{FORMATS[kind]}", value)  # fmt: skip


def parameter_space(kernel: Kernel, values: list[bytes]) -> bytes:
    """The arguments where the kernel's parameters lie."""
    values = values + [bytes(8)] * SCRATCH_POINTERS
    if [len(value) for value in values] != [param.size for param in kernel.params]:
        raise LaunchError(f"{kernel.name} takes {len(kernel.params)} parameters, {len(values)} are given")
    space = bytearray(kernel.param_bytes)
    for param, value in zip(kernel.params, values, strict=True):
        space[param.offset : param.offset + param.size] = value
    return bytes(space)


class Driver:
    """What Triton takes for the driver of a GPU: launches run on the machine."""

    def __init__(self, arch: int, warp_size: int = 32) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.machines, self.held = GPUTarget("cuda", arch, warp_size), {}, []
        self.utils, self.contracted = self, False

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 2**16}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What launches one compiled kernel, whose PTX lies in Triton's cache."""
        from triton.runtime.cache import get_cache_manager

        machine = self.machines.setdefault(metadata.hash, Machine(contracted=self.contracted))
        with open(get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")) as file:
            machine.load(parse.entries(file.read()))
        kernel = machine.kernel(metadata.name)
        threads = metadata.num_warps * self.target.warp_size

        def launch(grid: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            given = rest[4:]  # behind two sets of metadata and two hooks
            values = [packed(*argument) for argument in arguments_of(source.signature.values(), given)]
            if (y, z) != (1, 1):
                raise LaunchError(f"a grid of {grid}, {y}, {z}")
            machine.memory.register(allocations(self.held))
            if grid == 0:
                return  # as the real launcher does, once the kernel is compiled and loaded
            machine.launch(metadata.name, grid, threads, parameter_space(kernel, values), metadata.shared)

        return launch


def gpu(monkeypatch: pytest.MonkeyPatch, arch: int) -> Driver:
    """Makes the Triton backend step CPU tensors on a machine of this architecture, until the monkeypatch ends."""
    from triton import knobs
    from triton.runtime import JITFunction, driver

    from lrtricks_fused.triton_kernels import launch

    made = Driver(arch)
    driver.set_active(made)
    monkeypatch.setattr(knobs.runtime, "add_stages_inspection_hook", _no_machine_code)
    monkeypatch.setattr(knobs.cache, "dir", str(CACHE))
    for kernel in [value for value in vars(launch).values() if isinstance(value, JITFunction)]:
        kernel.device_caches.clear()
    monkeypatch.setattr(backends, "why_not_triton", lambda device: None)
    monkeypatch.setattr(torch.version, "hip", None)
    for name in ("_run", "_run_squares", "clip"):
        monkeypatch.setattr(launch, name, _holding(made, getattr(launch, name)))
    return made


def _no_machine_code(*given: Any) -> tuple[str, str] | None:
    """Leaves ptxas out, a third of the time; what is made so has another name in Triton's cache."""
    if not given:
        return "ptx alone", "ptx alone"
    _, stages, *_ = given
    stages["cubin"] = lambda source, metadata: b""
    return None


def _holding(driver: Driver, run: Callable[..., None]) -> Callable[..., None]:
    def wrapped(*given: Any) -> None:
        before = len(driver.held)
        driver.held += given
        try:
            run(*given)
        finally:
            del driver.held[before:]

    return wrapped
