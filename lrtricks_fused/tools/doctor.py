"""What this machine has, which backend runs on each of its devices, and why not another: ``lrtricks doctor``.

Nothing is stepped or compiled here; ``lrtricks verify`` does that. Its report takes its facts from here.
"""

import inspect
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy
import torch

from .. import __version__, optim
from ..step import backends, native

BACKENDS = tuple(name for name in backends.BACKENDS if name != "auto")  # the best first
FAST = ("native", "triton")
Row = tuple[str, ...]


def torch_build() -> str:
    """What torch is built for."""
    if torch.version.hip:
        return f"built for ROCm {torch.version.hip}"
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"


def driver_version() -> str:
    """The newest CUDA that the driver serves, as torch reports it."""
    version = backends.driver_version()
    return backends.cuda_name(version) if version else "none"


def native_library() -> str:
    """What the native library has kernels for, or why it cannot be used."""
    if native.load_error is not None:
        return f"unusable: {native.load_error}"
    archs = " ".join(native.cuda_archs()) or "none (built without CUDA)"
    return f"CPU kernels {_isa_error() or torch.ops.lrtricks_fused.cpu_isa()}, CUDA kernels {archs}"


def _isa_error() -> str | None:
    """What the native library has against LRTRICKS_CPU_ISA."""
    try:
        torch.ops.lrtricks_fused.cpu_isa()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def triton() -> str:
    """Triton's version, or why it cannot be used on any device."""
    return backends.why_not_triton(torch.device("cuda")) or str(backends.triton_version())


def nvcc() -> str:
    """The nvcc that setup.py would build with, and its version."""
    places = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ.get("PATH", "")]
    path = shutil.which("nvcc", path=os.pathsep.join(places))
    if path is None:
        return "not found, in CUDA_HOME/bin or on PATH; only needed to build the CUDA kernels"
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {error}"
    versions = [word.strip() for line in said.splitlines() if "release" in line for word in line.split(",")[-1:]]
    return f"{path}, {versions[0] if versions else 'of unknown version'}"


def cuda_devices() -> list[torch.device]:
    """All that torch sees; ROCm's are called cuda, too."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)]


def gpu(device: torch.device) -> str:
    """Name, architecture and memory."""
    properties = torch.cuda.get_device_properties(device)
    arch = f"compute capability {properties.major}.{properties.minor}"
    if torch.version.hip:
        arch = properties.gcnArchName
    return f"{properties.name}, {arch}, {properties.total_memory / 2**30:.1f} GiB"


def software() -> dict[str, str]:
    """What a reader of any report must know about the machine, its GPUs aside."""
    return {
        "lrtricks_fused": __version__,
        "native library": native_library(),
        "torch": f"{torch.__version__}, {torch_build()}",
        "Triton": triton(),
        "numpy": numpy.__version__,
        "driver's CUDA": driver_version(),
        "Python": f"{platform.python_version()}, {platform.platform()}",
    }


def facts() -> dict[str, str]:
    """All there is to know about the machine."""
    known = {**software(), "nvcc": nvcc()}
    gpus = {str(device): gpu(device) for device in cuda_devices()}
    return {**known, **(gpus or {"GPU": f"none that torch {torch.__version__}, {torch_build()}, can see"})}


def why_not(backend: str, device: torch.device) -> str | None:
    """As backends.why_not; an LRTRICKS_CPU_ISA that this machine lacks is a reason, too."""
    reason = backends.why_not(backend, device)
    if reason is None and (backend, device.type) == ("native", "cpu"):
        return _isa_error()
    return reason


def taken(optimizer: str, device: torch.device) -> str:
    """The backend that an optimizer takes on the device if it is not told one."""
    default = inspect.signature(getattr(optim, optimizer)).parameters["backend"].default
    chosen, _ = backends.choose(default, device)
    return chosen.name


def advice(device: torch.device, used: str) -> list[str]:
    """What stands in the way of backends better than the one in use; nothing where none is made for the device."""
    better = list(BACKENDS[: BACKENDS.index(used)])
    if device.type == "cpu":
        better = [name for name in better if name == "native"]  # interpreted Triton is slower than the reference
    elif torch.version.hip:
        better = [name for name in better if name != "native"]
    return [f"{device}: for the {name} backend: {why_not(name, device)}" for name in better]


def unseen_gpu() -> list[str]:
    """A GPU whose driver is there, but which torch cannot see."""
    for kind, sign in (("NVIDIA", "/proc/driver/nvidia/version"), ("AMD", "/dev/kfd")):
        if Path(sign).exists() and not cuda_devices():
            return [f"torch {torch.__version__}, {torch_build()}, sees no GPU, but an {kind} driver is there: install "
                    "the build of torch for it (https://pytorch.org/get-started)"]  # fmt: skip
    return []


@dataclass(frozen=True)
class Diagnosis:
    """What the report says, as data; the first row of a table is its head."""

    facts: dict[str, str]
    can_run: list[Row]
    optimizers: list[Row]
    to_do: list[str]
    healthy: bool


def diagnose() -> Diagnosis:
    """Ask backends.py about every backend and optimizer on every device."""
    devices = [torch.device("cpu"), *cuda_devices()]
    reasons = {(device, name): why_not(name, device) for device in devices for name in BACKENDS}
    used = {(device, name): taken(name, device) for device in devices for name in optim.__all__}
    can_run: list[Row] = [("device", "backend", "can run", "auto", "why not")]
    to_do = unseen_gpu()
    for device in devices:
        chosen = [used[device, name] for name in optim.__all__]
        for name in BACKENDS:
            reason = reasons[device, name]
            auto = "takes it" if name in chosen else ""
            can_run.append((str(device), name, "no" if reason else "yes", auto, reason or ""))
        to_do += advice(device, max(chosen, key=BACKENDS.index))
        if reasons[device, "native"] and "native" in chosen:
            to_do.append(f"{device}: every step fails: {reasons[device, 'native']}")
    return Diagnosis(
        facts(),
        can_run,
        [("optimizer", *map(str, devices)), *((name, *(used[d, name] for d in devices)) for name in optim.__all__)],
        to_do,
        all(any(reasons[device, name] is None for name in FAST) for device in devices),
    )


def plain_table(rows: list[Row]) -> list[str]:
    """Aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _closing(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.to_do:
        return ["Nothing to do: every device steps with the best backend made for it."]
    return ["To do:", *(f"  {line}" for line in diagnosis.to_do)]


def plain_report(diagnosis: Diagnosis) -> str:
    """For a pipe, or where rich is not installed."""
    width = max(map(len, diagnosis.facts))
    lines = ["lrtricks doctor", *(f"  {key:{width}}  {value}" for key, value in diagnosis.facts.items())]
    for table in (diagnosis.can_run, diagnosis.optimizers):
        lines += ["", *(f"  {line}" for line in plain_table(table))]
    return "\n".join([*lines, "", *_closing(diagnosis)]) + "\n"


def print_report(diagnosis: Diagnosis, stream: TextIO | None = None) -> None:
    """As tables of rich where it is installed and the stream is a terminal, else as plain text."""
    stream = stream or sys.stdout
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        stream.write(plain_report(diagnosis))
        return
    if not stream.isatty():
        stream.write(plain_report(diagnosis))
        return
    console = Console(file=stream, markup=False, highlight=False)
    known = [("lrtricks doctor", ""), *diagnosis.facts.items()]
    for rows in (known, diagnosis.can_run, diagnosis.optimizers):
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    console.print("\n".join(_closing(diagnosis)))
