"""The benchmark's command line: what it refuses, and what a terminal shows of its table."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import __main__ as bench
from bench import report

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rows", "("], "argument --rows: invalid regular expression '(': missing ), unterminated subpattern"),
        (["--threads", "0"], "argument --threads: invalid number '0': must be from 1 to 1024"),
        (["--threads", "two"], "argument --threads: invalid number 'two': must be from 1 to 1024"),
        (["--rows", "Adam of the moon"], "argument --rows: no row matches 'Adam of the moon'"),
    ],
)
def test_invalid_arguments(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(bench, "timed_rows", None)
    with pytest.raises(SystemExit) as exit_:
        bench.main(arguments)
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


def test_selected_rows_are_timed(monkeypatch):
    timed = []
    monkeypatch.setattr(bench, "timed_rows", lambda experiment, *_: timed.append(experiment.rule) or [])
    monkeypatch.setattr(bench, "memory_rows", lambda progress: timed.append("memory") or [])
    for rows in ("radam keep 0.5 . torch foreach", "MEMORY of a step", "rmsprop|memory"):
        bench.main(["--rows", rows, "--threads", "1"])
    assert timed == ["RAdam", "memory", "RMSprop", "memory"]
    assert torch.get_num_threads() == 1


def test_steps_of_shards_are_timed():
    command = [sys.executable, "-m", "bench.shards", "--ranks", "1", "--tensors", "3", "--rounds", "2"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    told = re.sub(r"^\[Gloo\] .*\n", "", told, flags=re.MULTILINE)  # what torch 2.10's says of the ranks
    assert told.startswith("3 tensors of 1,000, Adam keep 0.5, 1 rank, 1 thread")
    assert all(
        re.search(rf"^ *{name} +\d+\.\d{{3}} +\d+\.\d{{3}} ", told, re.MULTILINE) for name in ("plain", "FSDP2", "DDP")
    )


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_shows_every_figure(width):
    rows = [
        report.Row("16M fp32, Adam keep 0.5, LOSSGRAD beyond its second forward pass / ours", "27.27 [26.79-28.27]",
                   "<= 1.10", False, "121.933", "0.559", "1050 (102% of 1049)"),
        report.Row("Adam 16M fp32, memory of a step beyond parameters: torch foreach", "63.9 MiB", "", None),
    ]  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    report.print_terminal(console, {"CPU": "X"}, rows)
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    shown = text.replace("\n", " \n")
    for figure in ("27.27", "[26.79-28.27]", "<= 1.10", "FAIL", "121.933", "0.559", "1050", "(102% of 1049)"):
        assert f" {figure} " in shown, figure
    assert "63.9 MiB" in shown
    assert all(word in text for row in rows for word in row.work.split())
