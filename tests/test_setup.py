"""The switches of setup.py: what is compiled for which GPU."""

import runpy
from pathlib import Path

import pytest
import setuptools

SETUP = Path(__file__).parent.parent / "setup.py"


@pytest.fixture
def functions(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: None)
    return runpy.run_path(str(SETUP))


def test_default_architectures(functions, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    flags = functions["cuda_flags"]()
    codes = [flag.split(",code=")[1] for flag in flags if flag.startswith("-gencode")]
    assert codes == ["sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]
    assert "-fmad=false" in flags and "-use_fast_math" not in flags


def test_named_architectures(functions, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0+PTX")
    assert [flag for flag in functions["cuda_flags"]() if flag.startswith("-gencode")] == [
        "-gencode=arch=compute_86,code=sm_86", "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]  # fmt: skip


def test_use_cuda(functions, monkeypatch, tmp_path):
    monkeypatch.setenv("USE_CUDA", "0")
    assert functions["cuda_root"]() is None
    monkeypatch.setenv("USE_CUDA", "maybe")
    with pytest.raises(SystemExit, match="USE_CUDA=maybe"):
        functions["cuda_root"]()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("USE_CUDA", "1")
    with pytest.raises(SystemExit, match="USE_CUDA=1"):
        functions["cuda_root"]()
    monkeypatch.setenv("USE_CUDA", "auto")
    assert functions["cuda_root"]() is None


def test_without_cuda_nothing_of_it_is_compiled(functions, tmp_path):
    text = functions["ninja_text"]([(Path("a.cpp"), Path("a.o"), [])], tmp_path / "b.so", None)
    assert "LRT_CUDA_ARCHS" not in text and "cudart" not in text
