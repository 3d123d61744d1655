"""Builds the native library with ninja: one object per rule and instruction set, linked against torch's stable ABI.

Switches (environment): DEBUG=1 (-O0 -g, assertions), USE_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, CXX, CUDA_HOME.
The library holds no Python API, so one file serves every Python and every torch >= 2.10.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
DEBUG = os.environ.get("DEBUG", "0") == "1"
OLDEST_TORCH, OLDEST_NVCC = (2, 10), (12, 0)  # the first with this stable ABI; the first with C++20
DEFAULT_ARCHS = ("8.0", "9.0", "10.0", "12.0")

# Bit identity across instruction sets and backends: no contraction, no reassociation, IEEE sqrt and division.
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
OPTIMIZE = ["-O0", "-g"] if DEBUG else ["-O3"]
# Threads of others may have small stacks: what is large lies elsewhere.
FRAMES = [] if DEBUG else ["-Werror=frame-larger-than=16384"]
ISA_FLAGS: dict[str, list[str]] = {"Baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    # Few x86 processors run this one: it is compiled in less time, and computes longer.
    ISA_FLAGS["Baseline"] = ["-DLRT_ONE_DECAY"]
    # GCC 12 warns about its own AVX-512 headers.
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    ISA_FLAGS |= {"Avx2": ["-mavx2"], "Avx512": [*avx512, "-Wno-uninitialized", "-Wno-maybe-uninitialized"]}


class Cuda(NamedTuple):
    """The CUDA toolkit to build with."""

    nvcc: str
    cudart: Path  # the static runtime: the library must load where no CUDA is
    archs: list[str]  # as torch writes them: "8.0", "9.0a", "12.0+PTX"


def compiler() -> list[str]:
    """The host compiler, with its arguments if CXX has any."""
    return shlex.split(os.environ.get("CXX") or "g++")


def ninja() -> str | None:
    """The ninja on PATH, or beside this Python, whose environment need not be active."""
    return shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))


def check_tools() -> None:
    """Stops with one line that names all that a build lacks."""
    if not (CSRC / "ops.cpp").exists():
        raise SystemExit(f"No sources in {CSRC}: build from the repository or from the sdist")
    lacks = []
    try:
        import torch

        if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
            lacks.append(f"torch >= 2.10 (here is {torch.__version__})")
    except (ImportError, OSError) as error:  # OSError: a library of torch's does not load
        lacks.append(f"torch >= 2.10, and pip's --no-build-isolation ({error})")
    if ninja() is None:
        lacks.append("ninja (pip install ninja)")
    if shutil.which(compiler()[0]) is None:
        lacks.append(f"a C++20 compiler ({compiler()[0]} is not on PATH; CXX names another)")
    if lacks:
        raise SystemExit(f"lrtricks_fused cannot be built without: {'; '.join(lacks)}")


def said(nvcc: str, *arguments: str) -> str:
    """What nvcc prints; "" where it does not run."""
    try:
        run = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError:
        return ""
    return run.stdout


def toolkit(nvcc: str) -> Cuda | str:
    """The toolkit of this nvcc, or why it cannot be used."""
    version = re.search(r"release (\d+)\.(\d+)", said(nvcc, "--version"))
    if version is None:
        return f"{nvcc} does not run"
    if tuple(map(int, version.groups())) < OLDEST_NVCC:
        return f"{nvcc} is of CUDA {version[1]}.{version[2]}: 12.0 or later is needed, for C++20"
    # nvcc may be a link or a script: it knows itself where the toolkit is.
    top = re.search(r"^#\$ TOP=(.+)$", said(nvcc, "-dryrun", "x.cu"), re.MULTILINE)
    where = [Path(top[1])] if top else []
    folders = ("lib*", "targets/*/lib")
    runtimes = [path for root in where for folder in folders for path in root.glob(f"{folder}/libcudart_static.a")]
    if not runtimes:
        return f"the toolkit of {nvcc} lacks libcudart_static.a"
    archs = cuda_archs(said(nvcc, "--list-gpu-arch").split())
    return Cuda(nvcc, runtimes[0], archs) if archs else f"{nvcc} knows none of {', '.join(DEFAULT_ARCHS)}"


def cuda() -> Cuda | None:
    """The CUDA toolkit to build with: USE_CUDA=1, 0, or auto (when there is a usable nvcc; a GPU is not needed)."""
    choice = os.environ.get("USE_CUDA") or "auto"
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"Invalid USE_CUDA={choice}: must be auto, 0 or 1")
    nvcc = shutil.which("nvcc", path=os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"]]))
    if choice == "0" or (choice == "auto" and not nvcc):
        return None
    found = toolkit(nvcc) if nvcc else "nvcc is neither on PATH nor in CUDA_HOME/bin"
    if isinstance(found, Cuda):
        return found
    if choice == "1":
        raise SystemExit(f"Invalid USE_CUDA=1: {found}")
    print(f"lrtricks_fused is built without CUDA: {found}", file=sys.stderr)
    return None


def cuda_archs(known: list[str]) -> list[str]:
    """What TORCH_CUDA_ARCH_LIST names, e.g. "8.0;9.0a;10.0f+PTX"; by default what this nvcc knows of ours.

    Args:
        known: what ``nvcc --list-gpu-arch`` prints, "compute_90" and so on.
    """
    named = (os.environ.get("TORCH_CUDA_ARCH_LIST") or "").replace(";", " ").replace(",", " ").split()
    for arch in named:
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", arch)
        if match is None:
            raise SystemExit(f"Invalid TORCH_CUDA_ARCH_LIST: {arch} must be like 9.0, 9.0a, 10.0f or 9.0+PTX")
        if f"compute_{match[1]}{match[2]}" not in known:
            raise SystemExit(f"Invalid TORCH_CUDA_ARCH_LIST: {arch} is not among nvcc's {' '.join(known)}")
    if named:
        return list(dict.fromkeys(named))
    ours = [arch for arch in DEFAULT_ARCHS if f"compute_{arch.replace('.', '')}" in known]
    return [*ours[:-1], *(f"{highest}+PTX" for highest in ours[-1:])]  # PTX: for the GPUs to come


def cuda_flags(archs: list[str]) -> list[str]:
    """Flags of nvcc. No contraction; square roots, divisions and subnormals are IEEE by default."""
    host = "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off"
    # Compressed machine code is a fraction of the library's size; the driver unpacks what it loads.
    flags = ["-std=c++20", *OPTIMIZE, "-fmad=false", "-Xfatbin=-compress-all", f"-I{CSRC}", host]
    numbers = [arch.removesuffix("+PTX").replace(".", "") for arch in archs]
    for number in numbers:
        flags.append(f"-gencode=arch=compute_{ptx_arch(number, numbers)},code=sm_{number}")
    for arch, number in zip(archs, numbers, strict=True):
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def ptx_arch(number: str, numbers: list[str]) -> str:
    """The architecture whose PTX one's machine code is made of: of those before 10.0 the lowest.

    PTX takes longer to make than machine code, and theirs is the same; from 10.0 on it has instructions of its own.
    """
    before = [int(other) for other in numbers if other.isdigit() and int(other) < 100]
    return str(min(before)) if number.isdigit() and int(number) < 100 else number


def torch_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags for torch's stable ABI, as of 2.10."""
    import torch
    from torch.utils import cpp_extension

    abi = int(torch.compiled_with_cxx11_abi())
    defines = [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    # No rpath: torch is imported, and its libraries loaded, before this one.
    libs = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-ltorch", "-lc10"]
    return defines + includes, libs


def rules() -> dict[str, list[str]]:
    """The rules, by the names of their headers, and the flags that tell rule.cpp and rule.cu which is theirs."""
    found = {}
    for header in sorted((CSRC / "rules").glob("*.h")):
        if record := re.search(r"^struct (\w+Rule) {", header.read_text(), re.MULTILINE):
            found[header.stem] = [f"-DLRT_RULE={record[1]}", f'-DLRT_RULE_HEADER="rules/{header.name}"']
    return found


def objects(build: Path, found: Cuda | None) -> list[tuple[Path, Path, list[str]]]:
    """(source, object, extra flags) of all that is compiled."""
    sources = [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp")]
    sources += [*CSRC.glob("cuda/*.cu"), *CSRC.glob("cuda/*.cpp")] if found else []
    result = []
    for source in sorted(sources, key=lambda source: (source.suffix != ".cu", source)):  # the slow ones first
        text = source.read_text()
        # Only for those that read it: other architectures need not compile the CPU's kernels again.
        archs = [f"-DLRT_CUDA_ARCHS={json.dumps(' '.join(found.archs))}"] if found and "LRT_CUDA_ARCHS" in text else []
        per_rule: list[tuple[str | None, list[str]]] = [*rules().items()] if "LRT_RULE" in text else [(None, [])]
        per_isa = ISA_FLAGS if "LRT_ISA" in text else [None]
        for (rule, named), isa in product(per_rule, per_isa):
            extra = [*named, *([f"-DLRT_ISA={isa}", *ISA_FLAGS[isa]] if isa else []), *archs]
            parts = [source.parent.name, source.stem, *filter(None, [rule, isa]), "o"]
            result.append((source, build / ".".join(parts), extra))
    return result


def ninja_text(build: Path, target: Path, found: Cuda | None) -> str:
    """A build file: one object per source and instruction set, and one link."""
    compile_flags, link_flags = torch_flags()
    link_flags += [str(found.cudart), "-ldl", "-lrt", "-lpthread"] if found else []
    common = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *FRAMES, *OPTIMIZE, *EXACT, f"-I{CSRC}"]
    compile_one = "$extra -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc"
    lines = [
        f"cxx = {shlex.join(compiler())}",
        f"flags = {shlex.join(common + compile_flags)}",
        f"nvcc = {found.nvcc if found else ''}",
        f"cuda_flags = {shlex.join(cuda_flags(found.archs)) if found else ''}",
        f"rule cuda\n  command = $nvcc $cuda_flags {compile_one}",
        f"rule compile\n  command = $cxx $flags {compile_one}",
        f"rule link\n  command = $cxx -shared $in -o $out {shlex.join(link_flags)}",
    ]
    parts = objects(build, found)
    for source, obj, extra in parts:
        rule = "cuda" if source.suffix == ".cu" else "compile"
        lines.append(f"build {obj}: {rule} {source}\n  extra = {shlex.join(extra)}")
    lines.append(f"build {target}: link {' '.join(str(obj) for _, obj, _ in parts)}")
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    """Replaces setuptools' compiler by ninja: several flag sets per source, parallel, incremental."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        check_tools()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / ("debug" if DEBUG else "release")
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        library = build / target.name
        (build / "build.ninja").write_text(ninja_text(build, library, cuda()))
        if subprocess.run([ninja() or "ninja", "-C", str(build)]).returncode:
            raise SystemExit("The native library does not compile: the compiler's errors are above")
        fresh = target.with_suffix(".tmp")  # replaced in one step: a running process keeps the file it has loaded
        shutil.copy(library, fresh)  # of now: setuptools copies it on only where it is newer than what is there
        fresh.replace(target)


class EarlyCheck(dist_info):
    """The first that pip asks for when it installs: what lacks is told before anything is downloaded."""

    def run(self) -> None:
        check_tools()
        super().run()


# On disk beside the package, installed inside it: a top-level `triton_kernels` belongs to triton-lang.
TRITON = "lrtricks_fused.triton_kernels"

setup(
    packages=sorted({*find_packages(str(ROOT), include=["lrtricks_fused", "lrtricks_fused.*"]), TRITON}),
    package_dir={TRITON: "triton_kernels"},
    package_data={"lrtricks_fused": ["py.typed"]},
    ext_modules=[Extension("lrtricks_fused._native", sources=[])],
    cmdclass={"build_ext": NinjaBuild, "dist_info": EarlyCheck},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
