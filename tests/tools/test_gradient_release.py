"""examples/gradient_release.py: what a step in the backward pass saves, and that it is the same step."""

import sys

from helpers import assert_same_bits

from examples import gradient_release


def test_the_peak_is_lower_by_nearly_the_gradients():
    layers, width = 12, 256
    ordinary, expected = gradient_release.peak_of_step(False, layers, width)
    released, params = gradient_release.peak_of_step(True, layers, width)
    assert_same_bits(params, expected)
    gradients = sum(param.nbytes for param in params)
    assert ordinary >= gradients
    assert released < ordinary - gradients * (layers - 3) / layers


def test_it_prints_both(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gradient_release", "--layers", "3", "--width", "64"])
    gradient_release.main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed[:3]] == [
        "parameters",
        "peak of an ordinary step",
        "peak of a step in backward",
    ]
    assert printed[3].endswith("True")
