"""Which implementation of a step runs on a device, and why not another."""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable

import torch

from . import ops, reference
from .call import StepCall

logger = logging.getLogger(__name__)

OLDEST_TRITON = (3, 6)
BACKENDS = ("auto", "native", "triton", "reference")


def why_not(backend: str, device: torch.device) -> str | None:
    """The reason why ``backend`` cannot run on ``device``; None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        return why_not_triton(device)
    if ops.load_error is not None:
        return ops.load_error
    if device.type == "cuda":
        return why_not_cuda(ops.cuda_archs(), device)
    return None if device.type == "cpu" else f"the native library has no kernels for {device.type} tensors"


def why_not_cuda(built: list[str], device: torch.device) -> str | None:
    """The reason why kernels built for these architectures ("9.0", "12.0+PTX") cannot run on ``device``."""
    if torch.version.hip:
        return "the native library has no kernels for ROCm"
    if not built:
        return (
            "the native library was built without CUDA; with the CUDA toolkit's nvcc on PATH, build it again: "
            "USE_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
        )
    capability = torch.cuda.get_device_capability(device)
    for name in built:
        major, minor = map(int, name.removesuffix("+PTX").split("."))
        same_binary = major == capability[0] and minor <= capability[1]
        if same_binary or (name.endswith("+PTX") and (major, minor) <= capability):
            return None
    here = f"{capability[0]}.{capability[1]}"
    return (
        f"the native library is built for compute capabilities {', '.join(built)}, not {here}; "
        f"build it again with TORCH_CUDA_ARCH_LIST={here}"
    )


def triton_version() -> str | None:
    """The version of the triton that would be imported; None where there is none."""
    if importlib.util.find_spec("triton") is None:
        return None
    for distribution in ("triton", "triton-rocm", "pytorch-triton-rocm", "pytorch-triton", "triton-windows"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            pass
    return importlib.import_module("triton").__version__


def why_not_triton(device: torch.device) -> str | None:
    """The reason why the Triton kernels cannot run on ``device``; None if they can."""
    version = triton_version()
    if version is None:
        return "triton is not installed (pip install triton)"
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
        return f"triton {version} is too old: {'.'.join(map(str, OLDEST_TRITON))} or later is needed"
    if device.type not in ("cpu", "cuda"):
        return f"the Triton kernels are not made for {device.type} tensors"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    if device.type == "cpu" and not interpreted:
        return "Triton runs on a GPU; on the CPU only interpreted: set TRITON_INTERPRET=1 before Python starts"
    return None


@torch._disable_dynamo  # a compiled step runs this part as it is
def _triton_step(call: StepCall) -> None:
    from .triton_kernels.launch import triton_step  # imported late: triton is optional, and slow to import

    triton_step(call)


_STEP: dict[str, Callable[[StepCall], None]] = {
    "native": ops.native_step, "triton": _triton_step, "reference": reference.step
}  # fmt: skip


def check_backend(backend: str) -> None:
    """Raises ValueError unless ``backend`` is the name of one."""
    if backend not in BACKENDS:
        raise ValueError(f"Invalid backend={backend!r}: must be one of {', '.join(BACKENDS)}")


@functools.cache
def resolve(backend: str, device: torch.device) -> Callable[[StepCall], None]:
    """The step function of ``backend`` for tensors on ``device``.

    ``auto`` takes native, else Triton, else reference, and logs once when it is the slow reference.

    Raises:
        ValueError: the backend is unknown, or cannot run on this device (with the reason).
    """
    check_backend(backend)
    if backend != "auto":
        reason = why_not(backend, device)
        if reason is not None:
            raise ValueError(f"Invalid backend={backend!r} for {device} tensors: {reason}")
        return _STEP[backend]
    reasons = {name: why_not(name, device) for name in ("native", "triton")}
    for name, reason in reasons.items():
        if reason is None:
            return _STEP[name]
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    logger.warning("lrtricks_fused steps %s tensors with the slow reference backend (%s)", device, why)
    return _STEP["reference"]
