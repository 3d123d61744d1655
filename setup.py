"""Builds the native library with ninja: one object per rule and instruction set, linked against torch's stable ABI.

Switches (environment): DEBUG=1 (-O0 -g, assertions), USE_CUDA=auto|0|1.
The library holds no Python API, so one file serves every Python and every torch >= 2.10.
"""

import json
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


def cuda_root() -> Path | None:
    """The CUDA toolkit to build with: USE_CUDA=1, 0, or auto (when nvcc is found; a GPU is not needed)."""
    choice = os.environ.get("USE_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"Invalid USE_CUDA={choice}: must be auto, 0 or 1")
    nvcc = shutil.which("nvcc", path=os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"]]))
    if choice == "0" or (choice == "auto" and not nvcc):
        return None
    if not nvcc:
        raise SystemExit("Invalid USE_CUDA=1: nvcc is neither on PATH nor in CUDA_HOME/bin")
    # nvcc may be a link or a script: it knows itself where the toolkit is.
    lines = subprocess.run([nvcc, "-dryrun", "x.cu"], capture_output=True, text=True).stderr.splitlines()
    return next(Path(line.split("=", 1)[1]) for line in lines if line.startswith("#$ TOP="))


def cuda_archs() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST names, e.g. "8.0;9.0+PTX"; sm_80, 90, 100, 120 and PTX of the last by default."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0;10.0;12.0+PTX"
    return named.replace(";", " ").replace(",", " ").split()


def cuda_flags() -> list[str]:
    """Flags of nvcc. No contraction; square roots, divisions and subnormals are IEEE by default."""
    host = "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off"
    flags = ["-std=c++20", *OPTIMIZE, "-fmad=false", f"-I{CSRC}", host]
    for arch in cuda_archs():
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


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


def ninja_text(objects: list[tuple[Path, Path, list[str]]], target: Path, cuda: Path | None) -> str:
    """A build file: (source, object, extra flags) per object, and one link."""
    compile_flags, link_flags = torch_flags()
    if cuda:
        compile_flags.append(f"-DLRT_CUDA_ARCHS={json.dumps(' '.join(cuda_archs()))}")
        link_flags += [str(next(cuda.glob("lib*/libcudart_static.a"))), "-ldl", "-lrt", "-lpthread"]
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *OPTIMIZE, *EXACT, f"-I{CSRC}"]
    compiler = os.environ.get("CXX", "g++")
    lines = [
        f"cxx = {compiler}",
        f"flags = {shlex.join(common + compile_flags)}",
        f"nvcc = {cuda / 'bin' / 'nvcc' if cuda else ''}",
        f"cuda_flags = {shlex.join(cuda_flags())}",
        "rule cuda\n  command = $nvcc $cuda_flags -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        "rule compile\n  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = $cxx -shared $in -o $out {shlex.join(link_flags)}",
    ]
    for source, obj, extra in objects:
        rule = "cuda" if source.suffix == ".cu" else "compile"
        lines.append(f"build {obj}: {rule} {source}\n  extra = {shlex.join(extra)}")
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
        cuda = cuda_root()
        sources = [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp")]
        sources += [*CSRC.glob("cuda/*.cu"), *CSRC.glob("cuda/*.cpp")] if cuda else []
        for source in sorted(sources, key=lambda source: source.suffix != ".cu"):  # the slow ones first
            isas = ISA_FLAGS if "LRT_ISA" in source.read_text() else [None]
            for isa in isas:
                extra = [f"-DLRT_ISA={isa}", *ISA_FLAGS[isa]] if isa else []
                name = ".".join([source.parent.name, source.stem, *([isa] if isa else []), "o"])
                objects.append((source, build / name, extra))
        library = build / target.name
        (build / "build.ninja").write_text(ninja_text(objects, library, cuda))
        ninja = shutil.which("ninja") or str(Path(sys.executable).parent / "ninja")
        subprocess.run([ninja, "-C", str(build)], check=True)
        fresh = target.with_suffix(".tmp")  # replaced in one step: a running process keeps the file it has loaded
        shutil.copy2(library, fresh)
        fresh.replace(target)


setup(
    packages=[
        "lrtricks_fused", "lrtricks_fused.optim", "lrtricks_fused.schedules", "lrtricks_fused.triton_kernels",
        "lrtricks_fused.verify",
    ],
    # On disk beside the package, installed inside it: a top-level `triton_kernels` belongs to triton-lang.
    package_dir={"lrtricks_fused.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("lrtricks_fused._native", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
