"""README and docs/: code runs, commands exist, links resolve, what stands twice is the same, and the site builds."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrtricks_fused.tools import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "py", "sh", "text", "cpp", "math"}  # py: needs a framework, tests/frameworks runs it
OURS = ("bench", "examples", "lrtricks_fused")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line before each block of that language, and the block."""
    text = page.read_text()
    return [(text[: b.start(2)].count("\n"), b[2]) for b in BLOCK.finditer(text) if b[1] == language]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return BLOCK.sub("", page.read_text())


each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@each_page
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, page, "exec"), namespace)  # with the page's lines, for a traceback


def test_there_are_python_blocks():
    assert {name(page) for page in PAGES if blocks(page, "python")} >= {"README.md", "docs/tricks.md"}


@each_page
def test_blocks_say_their_language(page):
    text = page.read_text()
    assert {block[1] for block in BLOCK.finditer(text)} <= LANGUAGES
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(BLOCK.findall(text))


def commands(page: Path) -> list[str]:
    """Every line of a shell block, and what looks like a command in the text."""
    lines = [line for _, block in blocks(page, "sh") for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]
    return [*lines, *[span for span in spans if re.match(r"make [a-z]|\S*python -m |(\S*/)?lrtricks [a-z]", span)]]


@each_page
def test_commands_exist(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page):
        program, *arguments = shlex.split(command, comments=True)
        if program == "make":
            assert arguments[0] in targets, command
        elif Path(program).name == "lrtricks":
            cli.make_parser().parse_args(arguments)  # exits, and says why, where an option is not there
        elif Path(program).name == "python" and "<" not in command:
            assert arguments[0] == "-m", command
            ours = arguments[1].split(".")[0] in OURS
            assert importlib.util.find_spec(arguments[1]) if ours else arguments[1] == "build", command
        else:
            assert program == "pip" or "<" in command, command


@each_page
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        assert "://" in target or (page.parent / target.split("#")[0]).exists(), f"{name(page)}: {target}"


@each_page
def test_files_that_are_named_exist(page):
    for span in re.findall(r"`((?:csrc|lrtricks_fused|triton_kernels|tests|docs)/[\w./-]+)`", prose(page)):
        assert (ROOT / span).exists(), f"{name(page)}: {span}"


def test_cpp_blocks_stand_in_the_source():
    source = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "rules").glob("*.h")))
    squeezed = "".join(source.split())
    for page in PAGES:
        for line, code in blocks(page, "cpp"):
            assert "".join(code.split()) in squeezed, f"{name(page)}, line {line}"


def rows(page: str) -> set[str]:
    return {line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")}


def test_the_readme_repeats_rows_of_the_docs():
    assert rows("README.md") <= rows("docs/speed.md") | rows("docs/optimizers.md") | rows("docs/gpu.md")


@each_page
def test_tables_have_as_many_columns_in_every_row(page):
    """A header of another width than its rule is no table."""
    width = None
    for line in prose(page).splitlines():
        columns = line.replace("\\|", "").count("|") if line.startswith("|") else None
        assert width is None or columns is None or columns == width, f"{name(page)}: {line}"
        width = columns


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(module)
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference.html").read_text()
    assert "keep_prob" in reference and "<math" in reference and ".. math" not in reference
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=\"?(?:https?:)?//", text), page.name
        assert not re.findall(r"<link(?![^>]*rel=\"?canonical)[^>]*href=\"?(?:https?:)?//", text), page.name
