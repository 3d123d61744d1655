"""What is installed and from what: metadata, sdist, build backend, Makefile, demo's folder. Nothing is built."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import setuptools
from setuptools.config.expand import StaticModule

import lrtricks_fused
from examples import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Names in the sdist, without their first folder, and the metadata; from a copy, for setuptools writes into it."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    kept = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, source, ignore=kept, symlinks=True)
    script = "import build_backend, sys; build_backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(folder)], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
        info = next(member for member in archive.getmembers() if re.fullmatch("[^/]*/PKG-INFO", member.name))
        return names, archive.extractfile(info).read().decode().split("\n\n")[0]


def test_the_sdist_holds_what_a_build_needs(sdist):
    names, _ = sdist
    needed = {"setup.py", "build_backend.py", "pyproject.toml", "README.md", "LICENSE", "lrtricks_fused/py.typed"}
    for folder in ("csrc", "lrtricks_fused", "triton_kernels"):
        needed |= {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*.*")
            if path.suffix in (".py", ".h", ".cuh", ".cpp", ".cu") and "lrtricks_fused/triton" not in str(path)
        }
    assert needed <= names
    assert not any(name.startswith(("bench/", "examples/", "tests/", ".")) or name.endswith(".so") for name in names)


def test_metadata(sdist):
    lines = sdist[1].splitlines()
    assert f"Version: {lrtricks_fused.__version__}" in lines
    assert "License-Expression: BSD-3-Clause" in lines and "License-File: LICENSE" in lines
    assert {"Requires-Dist: torch>=2.10", "Requires-Dist: numpy"} <= set(lines)
    assert "://" not in sdist[1]


def test_one_source_of_the_version():
    assert lrtricks_fused.__version__ not in (ROOT / "pyproject.toml").read_text()
    # As setuptools reads it: a literal, or it would import torch.
    module = StaticModule("lrtricks_fused", importlib.util.find_spec("lrtricks_fused"))
    assert module.__version__ == lrtricks_fused.__version__


def test_every_package_is_installed(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "lrtricks_fused").rglob("__init__.py")}
    assert set(given["packages"]) == {".".join(folder.parts) for folder in folders} | {"lrtricks_fused.triton_kernels"}


@pytest.mark.parametrize(
    ("version", "what"), [(None, "setuptools is missing"), ("76.1.0", "setuptools 76.1.0 is too old")]
)
def test_backend_without_setuptools(monkeypatch, version, what):
    if version is None:
        monkeypatch.setitem(sys.modules, "setuptools", None)
    else:
        monkeypatch.setattr(setuptools, "__version__", version)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "build_backend.py"))
    assert str(stop.value).startswith(what)
    command = str(stop.value).split(": ")[1]
    assert command in (ROOT / "README.md").read_text()


def test_the_readme_names_what_a_build_requires():
    requires = re.search(r"^requires = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert requires == '"setuptools>=77", "ninja", "torch>=2.10"'
    assert "pip install ninja 'setuptools>=77'" in (ROOT / "README.md").read_text()


FAKE_PYTHON = """#!/bin/sh
case "$*" in
*assert*) ;;
-c*) echo "{name}";;
"-m venv"*)
  for folder; do :; done
  [ "$3" != --clear ] || rm -rf $folder
  mkdir -p $folder/bin; cp "$0" $folder/bin/python
  printf '#!/bin/sh\\necho "$DEBUG,$USE_CUDA: $*" >> log\\n' > $folder/bin/pip; chmod +x $folder/bin/pip
  echo "venv {name}" >> log;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make where Python and pip are scripts; returns the interpreters that made a .venv, and the builds."""
    for name in ("Makefile", "requirements.txt", "setup.py", "build_backend.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    for name in ("python3", "python3.99"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(FAKE_PYTHON.format(name=name))
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(*arguments: str) -> tuple[list[str], list[str]]:
        time.sleep(0.02)  # or what this writes may be as old as what the last run wrote, to some file systems
        (tmp_path / "log").write_text("")
        subprocess.run(["make", *arguments, ".venv/.built"], cwd=tmp_path, env=env, check=True, capture_output=True)
        lines = (tmp_path / "log").read_text().splitlines()
        made = [line.removeprefix("venv ") for line in lines if line.startswith("venv ")]
        return made, [line.split(":")[0] for line in lines if "--no-build-isolation" in line]

    return run


def test_switches_after_the_first_build(make):
    assert make() == (["python3"], [","])
    assert make() == ([], [])
    assert make("DEBUG=1") == ([], ["1,"])
    assert make("DEBUG=1") == ([], [])
    assert make("DEBUG=1", "USE_CUDA=0") == ([], ["1,0"])
    assert make() == ([], [","])


def test_python_after_the_first_build(make):
    make()
    assert make("PYTHON=python3") == ([], [])
    assert make("PYTHON=python3.99") == (["python3.99"], [","])
    assert make("PYTHON=python3.99") == ([], [])
    assert make() == ([], [])  # not named: .venv's own
    assert make("PYTHON=python3") == (["python3"], [","])


def test_the_demo_leaves_the_tracked_figures_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo"])
    folder = demo.parse_arguments().out
    assert folder.parts[0] == "build" and "build/" in (ROOT / ".gitignore").read_text().split()
    command = demo.places(folder, True)[-1].split(": ")[1]
    assert Path(command.split()[0]).exists() and command.endswith("-m examples.demo --out docs/figures")
    assert demo.places(demo.TRACKED_FIGURES, True)[-1].startswith("Figures: docs/figures/")
