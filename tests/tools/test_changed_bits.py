"""examples/changed_bits.py: a receiver follows, and fewer elements change at a smaller rate and under a mask."""

import copy
import sys

from examples import changed_bits
from examples.digits import make_model


def test_what_is_sent():
    model = make_model(0).bfloat16()
    rates, masked = (
        [changed_bits.run(copy.deepcopy(model), lr, keep_prob, 1) for lr in (1e-3, 1e-5)] for keep_prob in (1.0, 0.1)
    )
    for one in (*rates, *masked):
        assert one.equal and 0 < one.changed < 1
        assert abs(one.sent - one.changed - 1 / 16) < 1e-4  # the bitmaps of five tensors end with whole bytes
    assert rates[1].changed < rates[0].changed / 10 and masked[0].changed < rates[0].changed / 5


def test_it_prints_each_rate_and_probability(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["changed_bits", "--warm-up", "1", "--epochs", "1"])
    changed_bits.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(changed_bits.LRS) * len(changed_bits.KEEP_PROBS)
    assert all(line.endswith("equal") for line in lines[1:])
