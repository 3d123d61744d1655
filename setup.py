"""Builds the native library with ninja: one object per rule and instruction set, linked against torch's stable ABI.

Switches (environment): DEBUG=1 (-O0 -g, assertions), USE_CUDA=auto|0|1.
The library holds no Python API, so one file serves every Python and every torch >= 2.10.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
DEBUG = os.environ.get("DEBUG", "0") == "1"

# Bit identity across instruction sets and backends: no contraction, no reassociation, IEEE sqrt and division.
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
OPTIMIZE = ["-O0", "-g"] if DEBUG else ["-O3"]
ISA_FLAGS = {"Baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    # -Wno-maybe-uninitialized: GCC 12 warns about its own AVX-512 headers.
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    ISA_FLAGS |= {"Avx2": ["-mavx2"], "Avx512": [*avx512, "-Wno-maybe-uninitialized"]}


def use_cuda() -> bool:
    """Whether to build the CUDA kernels: USE_CUDA=1, 0, or auto (when the sources and nvcc are there)."""
    choice = os.environ.get("USE_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"Invalid USE_CUDA={choice}: must be auto, 0 or 1")
    available = (CSRC / "cuda").is_dir() and shutil.which("nvcc") is not None
    if choice == "1" and not available:
        raise SystemExit("Invalid USE_CUDA=1: this version has no CUDA kernels, or nvcc is not on PATH")
    return choice != "0" and available


def torch_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags for torch's stable ABI, as of 2.10."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit("torch is needed to build: pip install torch==2.13.0, then --no-build-isolation") from error
    abi = int(torch.compiled_with_cxx11_abi())
    defines = [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    # No rpath: torch is imported, and its libraries loaded, before this one.
    libs = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-ltorch", "-lc10"]
    return defines + includes, libs


def ninja_text(objects: list[tuple[Path, Path, list[str]]], target: Path) -> str:
    """A build file: (source, object, extra flags) per object, and one link."""
    compile_flags, link_flags = torch_flags()
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *OPTIMIZE, *EXACT, f"-I{CSRC}"]
    compiler = os.environ.get("CXX", "g++")
    lines = [
        f"cxx = {compiler}",
        f"flags = {shlex.join(common + compile_flags)}",
        "rule compile\n  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = $cxx -shared $in -o $out {shlex.join(link_flags)}",
    ]
    for source, obj, extra in objects:
        lines.append(f"build {obj}: compile {source}\n  extra = {shlex.join(extra)}")
    lines.append(f"build {target}: link {' '.join(str(obj) for _, obj, _ in objects)}")
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Replaces setuptools' compiler by ninja: several flag sets per source, parallel, incremental."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / ("debug" if DEBUG else "release")
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sorted([*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp")]):
            isas = ISA_FLAGS if source.name.startswith("rule_") else [None]
            for isa in isas:
                extra = [f"-DLRT_ISA={isa}", *ISA_FLAGS[isa]] if isa else []
                objects.append((source, build / f"{source.stem}{'.' + isa if isa else ''}.o", extra))
        library = build / target.name
        (build / "build.ninja").write_text(ninja_text(objects, library))
        ninja = shutil.which("ninja") or str(Path(sys.executable).parent / "ninja")
        subprocess.run([ninja, "-C", str(build)], check=True)
        fresh = target.with_suffix(".tmp")  # replaced in one step: a running process keeps the file it has loaded
        shutil.copy2(library, fresh)
        fresh.replace(target)


setup(
    packages=["lrtricks_fused", "lrtricks_fused.optim"],
    ext_modules=[Extension("lrtricks_fused._native", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
