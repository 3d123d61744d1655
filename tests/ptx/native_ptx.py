"""Steps by the PTX of the built library: its own launchers hand it to the machine."""

import ctypes
import fcntl
import functools
import importlib.util
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_on_host
from held_tensors import allocations
from machine import parse
from machine.launch import Machine

from bench.machine_code import sass
from lrtricks_fused.step import native

ROOT = Path(__file__).parents[2]
OBJECTS, BUILD = ROOT / "build" / "release", ROOT / "build" / "ptx"
_LABEL_NUMBER = re.compile(r"(\$L__BB)\d+(?=_)")
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint,
                           ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t)  # fmt: skip


def texts_of(binary: Path) -> dict[str, dict[str, str]]:
    """The PTX of all kernels in a library or object, by target ("sm_90") and name."""
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sass.run_tool("cuobjdump", "-xptx", "all", str(binary), cwd=folder)
        for file in Path(folder).iterdir():
            text = file.read_text()
            texts = found.setdefault(parse.target(text), {})
            for name, entry in parse.entries(text).items():
                entry = _LABEL_NUMBER.sub(r"\1", entry).strip()  # which differs between the objects that share a kernel
                if texts.setdefault(name, entry) != entry:
                    raise ValueError(f"{name} is in {binary} twice, and not the same")
    return found


@functools.cache
def library() -> dict[str, dict[str, str]]:
    """The PTX of the built library."""
    return texts_of(native.LIBRARY)


def ptxas_options() -> list[str]:
    """What the library tells the driver's compiler, for each of its PTX texts."""
    with tempfile.TemporaryDirectory() as folder:
        said = sass.run_tool("cuobjdump", "-xptx", "all", str(native.LIBRARY), cwd=folder)
    return [line.partition("-arch=")[2] for line in said.splitlines() if "ptxas options" in line]


def why_not() -> str | None:
    """The reason why there is nothing to execute; None if there is something."""
    missing = sass.missing_tools()
    if missing or not native.cuda_archs():
        return missing or "the native library is built without CUDA"
    if not any(arch.endswith("+PTX") for arch in native.cuda_archs()):
        built = " ".join(native.cuda_archs())
        return f"the library is built for {built}, without PTX: build it with TORCH_CUDA_ARCH_LIST=9.0+PTX"
    return None


def objects() -> list[Path]:
    """Those that launchers and kernels are linked of."""
    return sorted(path for path in OBJECTS.glob("cuda.*.o") if path.name != "cuda.entry.o")


@functools.cache
def module() -> ModuleType:
    """The launchers, linked on first use."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # several processes may run tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = ["make", "-s", "-C", ROOT / "tests" / "ptx", f"PYTHON={sys.executable}", f"BUILD={BUILD}",
                f"OBJECTS={' '.join(map(str, objects()))}"]  # fmt: skip
        subprocess.run(made, check=True)
    spec = importlib.util.spec_from_file_location("cuda_on_host", BUILD / "cuda_on_host.so")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Device:
    """A machine with the library's PTX, and what the step in progress may touch."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.machine = Machine()
        self.machine.load(texts)
        self.held: list[Any] = []
        self._callback, self._said = _LAUNCH(self._launch), ctypes.create_string_buffer(b"")

    def _launch(self, name: bytes, grid: int, threads: int, arguments: Any, shared: int) -> int | None:
        try:
            kernel = self.machine.kernel(name.decode())
            params = bytearray(kernel.param_bytes)
            for number, param in enumerate(kernel.params):
                params[param.offset : param.offset + param.size] = ctypes.string_at(arguments[number], param.size)
            self.machine.memory.register(allocations(self.held))
            self.machine.launch(kernel.name, grid, threads, bytes(params), shared)
        except Exception as failure:  # no exception passes through the launchers
            self._said = ctypes.create_string_buffer(f"{type(failure).__name__}: {failure}".encode())
            return ctypes.addressof(self._said)
        return None

    def _holding(self, function: Callable[..., None]) -> Callable[..., None]:
        """The same function, whose launches may touch what it is given."""
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def holding(*given: Any) -> None:
            self.held[:] = [dict(zip(names, given, strict=True))]
            function(*given)

        return holding

    def patch(self, monkeypatch: Any) -> None:
        """What cuda_on_host launches goes to this device, until the monkeypatch ends."""
        ctypes.CDLL(module().__file__).set_launch(self._callback)
        monkeypatch.setattr(cuda_on_host, "module", module)
        for function in (cuda_on_host.run, cuda_on_host.run_squares, cuda_on_host.clip, cuda_on_host.upload):
            monkeypatch.setattr(cuda_on_host, function.__name__, self._holding(function))
