"""Which implementation of a step runs on a device, and why not another."""

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from . import native, reference
from .call import StepCall
from .operands import check_operands
from .untraced import untraced

logger = logging.getLogger(__name__)

OLDEST_TRITON = (3, 6)
# The interpreter of the oldest takes arrays of one element for numbers, which numpy 2.4 refuses (triton pull 9172).
TRITON_FOR_NEW_NUMPY, NEW_NUMPY = (3, 7), (2, 4)
BACKENDS = ("auto", "native", "triton", "reference")


def why_not(backend: str, device: torch.device) -> str | None:
    """The reason why ``backend`` cannot run on ``device``; None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        return why_not_triton(device)
    if native.load_error is not None:
        return native.load_error
    if device.type == "cuda":
        return why_not_cuda(native.cuda_archs(), device) or why_not_driver(native.cuda_version())
    return None if device.type == "cpu" else f"the native library has no kernels for {device.type} tensors"


def _serves(name: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for the architecture of that name run on a device of that compute capability.

    "9.0" runs on later minor versions, "10.0f" (a family) too, "9.0a" on no other; "+PTX" on all that are later, unless
    what it holds is of a family or of one architecture.
    """
    arch = name.removesuffix("+PTX")
    built = tuple(map(int, arch.rstrip("af").split(".")))
    if arch.endswith("a"):
        return built == capability
    same_major = built[0] == capability[0] and built <= capability
    return same_major or (arch != name and not arch.endswith("f") and built <= capability)


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
    if any(_serves(name, capability) for name in built):
        return None
    here = f"{capability[0]}.{capability[1]}"
    return (
        f"the native library is built for compute capabilities {', '.join(built)}, not {here}; "
        f"build it again with TORCH_CUDA_ARCH_LIST={here}"
    )


def driver_version() -> int:
    """The newest CUDA that the driver serves: 12080 is 12.8; 0 where there is none."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0
    except (OSError, AttributeError):
        return 0


def why_not_driver(toolkit: int) -> str | None:
    """The reason why this machine's driver cannot run kernels built with that CUDA toolkit; None if it can.

    Any driver of the toolkit's major version or a later one can (CUDA's minor version compatibility).
    """
    driver = driver_version()
    needed = toolkit // 1000
    if driver == 0 or driver // 1000 >= needed:
        return None
    return (
        f"the native library is built with CUDA {cuda_name(toolkit)}, but the driver serves no later than "
        f"{cuda_name(driver)}; install a driver for CUDA {needed} (CUDA 12: 525, CUDA 13: 580 or later), or build it "
        f"again with CUDA {driver // 1000}"
    )


def cuda_name(version: int) -> str:
    """A version of CUDA as people write it: 12080 is 12.8."""
    return f"{version // 1000}.{version % 1000 // 10}"


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


def _two_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def why_not_triton(device: torch.device) -> str | None:
    """The reason why the Triton kernels cannot run on ``device``; None if they can."""
    version = triton_version()
    if version is None:
        return "triton is not installed (pip install triton)"
    if _two_numbers(version) < OLDEST_TRITON:
        return f"triton {version} is too old: {'.'.join(map(str, OLDEST_TRITON))} or later is needed"
    if device.type not in ("cpu", "cuda"):
        return f"the Triton kernels are not made for {device.type} tensors"
    return _why_not_interpreted(version) if device.type == "cpu" else None


def _why_not_interpreted(version: str) -> str | None:
    """What is missing for steps by the interpreter of that version of Triton."""
    missing = []
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "on", "yes", "y"):
        missing.append("Triton runs on a GPU; on the CPU only interpreted: set TRITON_INTERPRET=1 before Python starts")
    if _two_numbers(version) < TRITON_FOR_NEW_NUMPY and _two_numbers(numpy.__version__) >= NEW_NUMPY:
        missing.append(f"the interpreter of triton {version} cannot use numpy {numpy.__version__} "
                       f"(pip install 'numpy<{'.'.join(map(str, NEW_NUMPY))}')")  # fmt: skip
    return "; ".join(missing) or None


@untraced
def _triton_step(call: StepCall) -> None:
    from ..triton_kernels.launch import triton_step  # imported late: triton is optional, and slow to import

    triton_step(call)


@untraced
def _triton_squares(call: StepCall, out: Tensor) -> None:
    from ..triton_kernels.launch import squares

    squares(call, out)


@untraced
def _triton_clip(squares: Tensor, norm: Tensor, factor: Tensor, grad_scale: Tensor | None, max_norm: float) -> None:
    from ..triton_kernels.launch import clip

    clip(squares, norm, factor, grad_scale, max_norm)


@untraced
def _triton_prepare(call: StepCall) -> None:
    from ..triton_kernels.launch import prepare

    prepare(call)


@dataclass(frozen=True, slots=True)
class Backend:
    """An implementation of the fused step.

    Attributes:
        name: as the optimizers' argument ``backend`` has it.
        step: takes one step; whatever it refuses, it refuses before it writes.
        prepare: refuses now whatever ``step`` would refuse, and can do a part of its work before the step: raises
            ValueError, TypeError or RuntimeError where an operand does not fit, and changes nothing.
        squares: writes the squared norms of a prepared call's gradients into a float64 for each parameter.
        clip: writes norm and factor from the squares of all parameters, see :func:`.reference.clip`.
    """

    name: str
    step: Callable[[StepCall], None]
    prepare: Callable[[StepCall], None] = check_operands
    squares: Callable[[StepCall, Tensor], None] = reference.squares
    clip: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], None] = reference.clip


_registered: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Enters the implementation of a backend of :data:`BACKENDS`; the one before it, if there was one, is returned."""
    before = _registered.get(backend.name, backend)
    _registered[backend.name] = backend
    resolve.cache_clear()
    return before


def check_backend(backend: object) -> None:
    """Raises ValueError unless ``backend`` is the name of one."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"Invalid backend={backend!r}: must be one of {', '.join(BACKENDS)}")


def choose(backend: str, device: torch.device) -> tuple[Backend, dict[str, str]]:
    """The implementation that ``backend`` means for tensors on ``device``, and why better ones are not taken.

    ``auto`` means native, else Triton, else reference.

    Raises:
        ValueError: the backend is unknown, or cannot run on this device (with the reason).
    """
    check_backend(backend)
    if backend != "auto":
        reason = why_not(backend, device)
        if reason is not None:
            raise ValueError(f"Invalid backend={backend!r} for {device} tensors: {reason}")
        return _registered[backend], {}
    reasons: dict[str, str] = {}
    for name in BACKENDS[1:]:
        reason = why_not(name, device)
        if reason is None:
            return _registered[name], reasons
        reasons[name] = reason
    raise AssertionError("the reference runs everywhere")


@functools.cache
def resolve(backend: str, device: torch.device) -> Backend:
    """As :func:`choose`; logs once when ``auto`` takes the slow reference."""
    chosen, reasons = choose(backend, device)
    if chosen.name == "reference" and reasons:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        logger.warning("lrtricks_fused steps %s tensors with the slow reference backend (%s)", device, why)
    return chosen


def prepare(backend: str, calls: list[StepCall]) -> list[Backend]:
    """The backends of the calls of one step, each of which has prepared its call: none is refused any more.

    Raises:
        ValueError, TypeError, RuntimeError: a backend cannot run, or an operand does not fit; nothing has been changed.
    """
    backends = [resolve(backend, call.params[0].device) for call in calls]
    for chosen, call in zip(backends, calls, strict=True):
        call.alone = len(calls) == 1
        chosen.prepare(call)
    return backends


register(Backend("native", native.native_step, native.prepare, native.squares, native.clip))
register(Backend("triton", _triton_step, _triton_prepare, _triton_squares, _triton_clip))
register(Backend("reference", reference.step))
