"""The snippets of docs/training.md that need a framework: each runs alone, in a folder of its own."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRAMEWORKS = ("lightning", "accelerate", "transformers", "timm")
SNIPPETS = {
    framework: (text.count("\n", 0, block.start(1)), block[1])
    for text in [PAGE.read_text()]
    for block in BLOCK.finditer(text)
    for framework in FRAMEWORKS
    if re.search(rf"^(import|from) {framework}\b", block[1], re.MULTILINE)
}


def test_every_framework_has_one():
    assert tuple(SNIPPETS) == FRAMEWORKS
    assert len(SNIPPETS) == len(BLOCK.findall(PAGE.read_text()))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_snippet_runs(framework, request, tmp_path, monkeypatch):
    if framework == "timm":
        request.getfixturevalue("no_torchvision")
    pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    line, code = SNIPPETS[framework]
    exec(compile("\n" * line + code, PAGE, "exec"), {"__name__": "page"})
