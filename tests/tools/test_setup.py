"""What setup.py decides, with a stand-in for nvcc: architectures, toolkit, what a build lacks. Nothing is built."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
CUDA_13 = [f"compute_{number}" for number in (75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121)]
CUDA_12_0 = [f"compute_{number}" for number in (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)]


@pytest.fixture
def functions(monkeypatch):
    for name in ("TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "USE_CUDA", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: None)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def nvcc(monkeypatch, tmp_path):
    """Makes nvcc a script that says it is of this version, and knows these architectures, in a folder alone on PATH."""

    def make(version: str, archs: list[str], runtime: str = "lib64") -> Path:
        path = tmp_path / "cuda" / "bin" / "nvcc"
        (tmp_path / "cuda" / runtime).mkdir(parents=True)
        (tmp_path / "cuda" / runtime / "libcudart_static.a").touch()
        path.parent.mkdir()
        path.write_text(
            f'#!/bin/sh\ncase "$1" in\n--version) echo "Cuda compilation tools, release {version}, V{version}.1";;\n'
            f'-dryrun) echo "#\\$ TOP={tmp_path}/cuda" >&2;;\n--list-gpu-arch) echo "{" ".join(archs)}";;\nesac\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))
        return path

    return make


def gencode(flags: list[str]) -> list[str]:
    return [flag.removeprefix("-gencode=arch=") for flag in flags if flag.startswith("-gencode")]


@pytest.mark.parametrize(
    ("known", "archs"),
    [
        (CUDA_13, ["8.0", "9.0", "10.0", "12.0+PTX"]),
        (CUDA_12_0, ["8.0", "9.0+PTX"]),
        ([*CUDA_12_0, "compute_100"], ["8.0", "9.0", "10.0+PTX"]),
        (["compute_100", "compute_120", "compute_140"], ["10.0", "12.0+PTX"]),
        (["compute_140"], []),
    ],
)
def test_default_architectures_are_those_nvcc_knows(functions, known, archs):
    assert functions["cuda_archs"](known) == archs


def test_flags(functions):
    flags = functions["cuda_flags"](["8.0", "9.0a", "10.0f+PTX"])
    assert gencode(flags) == [
        "compute_80,code=sm_80",
        "compute_90a,code=sm_90a",
        "compute_100f,code=sm_100f",
        "compute_100f,code=compute_100f",
    ]
    assert "-fmad=false" in flags and "-use_fast_math" not in flags


def test_before_10_the_lowest_ptx_serves_all(functions):
    assert gencode(functions["cuda_flags"](["9.0", "8.0", "10.0", "8.6+PTX", "12.0"])) == [
        "compute_80,code=sm_90",
        "compute_80,code=sm_80",
        "compute_100,code=sm_100",
        "compute_80,code=sm_86",
        "compute_120,code=sm_120",
        "compute_86,code=compute_86",
    ]


@pytest.mark.parametrize("separator", ["; ", " ", ","])
def test_named_architectures(functions, monkeypatch, separator):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", separator.join(["8.6", "9.0a", "10.0f", "9.0a", "12.1+PTX"]))
    assert functions["cuda_archs"](CUDA_13) == ["8.6", "9.0a", "10.0f", "12.1+PTX"]


@pytest.mark.parametrize("arch", ["Hopper", "90", "9.0b", "9.0+ptx", "9.0aa", "10.0"])
def test_bad_architectures_are_named(functions, monkeypatch, arch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0;{arch}")
    with pytest.raises(SystemExit) as stop:
        functions["cuda_archs"](CUDA_12_0)
    assert str(stop.value).startswith(f"Invalid TORCH_CUDA_ARCH_LIST: {arch} ")


@pytest.mark.parametrize("runtime", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_toolkit(functions, nvcc, tmp_path, runtime):
    path = nvcc("12.0", CUDA_12_0, runtime)
    cudart = tmp_path / "cuda" / runtime / "libcudart_static.a"
    assert functions["cuda"]() == (str(path), cudart, ["8.0", "9.0+PTX"])


def test_cuda_home_comes_before_path(functions, nvcc, monkeypatch, tmp_path):
    path = nvcc("13.0", CUDA_13)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(path.parent.parent))
    assert functions["cuda"]().nvcc == str(path)


def break_version(path: Path) -> str:
    path.write_text(path.read_text().replace("release 13.0", "release 11.8"))
    return f"{path} is of CUDA 11.8: 12.0 or later is needed, for C++20"


def break_interpreter(path: Path) -> str:
    path.write_text("#!/no/such/shell\n")
    return f"{path} does not run"


def break_runtime(path: Path) -> str:
    (path.parent.parent / "lib64" / "libcudart_static.a").unlink()
    return f"the toolkit of {path} lacks libcudart_static.a"


def break_answers(path: Path) -> str:
    path.write_text("#!/bin/sh\necho release 13.0\n")
    return f"the toolkit of {path} lacks libcudart_static.a"


def break_archs(path: Path) -> str:
    path.write_text(path.read_text().replace("compute_", "sm_"))
    return f"{path} knows none of 8.0, 9.0, 10.0, 12.0"


def break_all(path: Path) -> str:
    path.unlink()
    return "nvcc is neither on PATH nor in CUDA_HOME/bin"


@pytest.mark.parametrize(
    "damage", [break_version, break_interpreter, break_runtime, break_answers, break_archs, break_all]
)
def test_an_unusable_toolkit(functions, nvcc, monkeypatch, capsys, damage):
    why = damage(nvcc("13.0", CUDA_13))
    assert functions["cuda"]() is None
    told = "" if damage is break_all else f"lrtricks_fused is built without CUDA: {why}\n"  # none at all is ordinary
    assert capsys.readouterr().err == told
    monkeypatch.setenv("USE_CUDA", "1")
    with pytest.raises(SystemExit) as stop:
        functions["cuda"]()
    assert str(stop.value) == f"Invalid USE_CUDA=1: {why}"


def test_use_cuda(functions, nvcc, monkeypatch):
    nvcc("13.0", CUDA_13)
    monkeypatch.setenv("USE_CUDA", "0")
    assert functions["cuda"]() is None
    monkeypatch.setenv("USE_CUDA", "maybe")
    with pytest.raises(SystemExit, match="USE_CUDA=maybe"):
        functions["cuda"]()


def test_what_is_compiled(functions, tmp_path):
    """Without CUDA nothing of it; with it, only what reads the architectures depends on them."""
    plain = functions["ninja_text"](tmp_path, tmp_path / "b.so", None)
    assert "LRT_CUDA_ARCHS" not in plain and "cudart" not in plain and ".cu\n" not in plain
    texts = [
        functions["ninja_text"](tmp_path, tmp_path / "b.so", functions["Cuda"]("nvcc", Path("cudart.a"), archs))
        for archs in (["8.0"], ["9.0a", "12.0+PTX"])
    ]
    assert all("cudart.a" in text and "cuda/rule.cu" in text and "rule.adam.o" in text for text in texts)
    one, other = ({line for line in text.splitlines() if line.strip()} for text in texts)
    assert sorted(line.split(" = ")[0].strip() for line in one ^ other) == ["cuda_flags"] * 2 + ["extra"] * 2


def test_back_to_a_library_built_earlier(functions, monkeypatch, tmp_path):
    """As from DEBUG=1 back to 0: setuptools copies a library into the tree only where it is the newer one."""
    build = functions["NinjaBuild"](setuptools.Distribution())
    stand_ins = {"ROOT": tmp_path, "DEBUG": False, "check_tools": lambda: None, "cuda": lambda: None,
                 "ninja": lambda: "true", "ninja_text": lambda *arguments: ""}  # fmt: skip
    for name, value in stand_ins.items():
        monkeypatch.setitem(functions["check_tools"].__globals__, name, value)
    monkeypatch.setattr(build, "get_ext_fullpath", lambda name: str(tmp_path / "lib" / "_native.so"))
    library = tmp_path / "build" / "release" / "_native.so"
    library.parent.mkdir(parents=True)
    library.write_text("release")
    os.utime(library, (1e9, 1e9))
    build.build_extension(setuptools.Extension("lrtricks_fused._native", []))
    copy = tmp_path / "lib" / "_native.so"
    assert copy.read_text() == "release" and copy.stat().st_mtime > 1.5e9
    monkeypatch.setitem(functions["check_tools"].__globals__, "ninja", lambda: "false")
    with pytest.raises(SystemExit, match="does not compile"):
        build.build_extension(setuptools.Extension("lrtricks_fused._native", []))


def remove_ninja(functions, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def remove_compiler(functions, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-g++ -pipe")


def remove_torch(functions, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)


def age_torch(functions, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.__version__", "2.9.1+cu128")


@pytest.mark.parametrize(
    ("damage", "lacking"),
    [
        (remove_ninja, "ninja (pip install ninja)"),
        (remove_compiler, "a C++20 compiler (no-such-g++ is not on PATH; CXX names another)"),
        (remove_torch, "torch >= 2.10, and pip's --no-build-isolation (import of torch halted; None in sys.modules)"),
        (age_torch, "torch >= 2.10 (here is 2.9.1+cu128)"),
    ],
)
def test_what_lacks_is_named(functions, monkeypatch, tmp_path, damage, lacking):
    for name in ("ninja", "g++"):
        tool = tmp_path / ("python_dir" if name == "ninja" else "bin") / name
        tool.parent.mkdir()
        tool.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python_dir" / "python"))
    functions["check_tools"]()
    damage(functions, monkeypatch, tmp_path)
    with pytest.raises(SystemExit) as stop:
        functions["check_tools"]()
    assert str(stop.value) == f"lrtricks_fused cannot be built without: {lacking}"


def test_without_sources(functions, monkeypatch, tmp_path):
    monkeypatch.setitem(functions["check_tools"].__globals__, "CSRC", tmp_path)
    with pytest.raises(SystemExit, match=r"No sources in .*: build from the repository or from the sdist"):
        functions["check_tools"]()
