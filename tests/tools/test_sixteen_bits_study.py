"""The study of sixteen bits: how it judges made-up numbers, and what becomes of its second moments."""

import pytest

from examples import common, sixteen_bits


@pytest.mark.parametrize(("worse", "words"), [(10.0, "shows"), (0.1, "is reversed"), (1.0, "does not show")])
def test_storage_is_judged_by_pairs(worse, words):
    """Losses of rounding to nearest are so many times the others'; each other arm is as good as the control."""
    runs = {}
    for stored, lr in sixteen_bits.WAYS:
        factor = worse if stored.color == sixteen_bits.ORANGE else 1.0
        losses = [factor * (1 + 0.01 * seed) for seed in range(3)]
        runs[sixteen_bits.arm_name(stored, lr)] = [common.Run([loss], [0.5]) for loss in losses]
    sentences = sixteen_bits.verdicts(runs)[1:]
    told = [f"a lower training loss {words}" in sentence for sentence in sentences]
    nearest = [sentence.partition(" against ")[2].partition(":")[0].endswith("nearest") for sentence in sentences]
    assert nearest.count(True) == 8 and (told == nearest or words == "does not show")


def test_a_second_moment_rounded_to_nearest_stands_still(monkeypatch, threads):
    threads(1)
    for name, number in {"STEPS": 1200, "FALL": 200, "ELEMENTS": 1024}.items():
        monkeypatch.setattr(sixteen_bits, name, number)
    plain, nearest, stochastic = (means[-1] for means in sixteen_bits.second_moments().values())
    # 1 %: roundings of an ulp of at most 2**-7 are forgotten after 1,000 steps; the mean of 1,024 elements walks 0.2 %.
    assert stochastic == pytest.approx(plain, rel=0.01) and nearest > 2 * plain
