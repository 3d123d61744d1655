"""What bench.gpu times and reckons: its rows, their bytes, shares of a copy, the budget, and the GPU's clocks."""

import stat
import time

import pytest
import torch

from bench.gpu import clocks, measure
from bench.gpu.budget import DOUBT, Budget
from bench.gpu.candidates import all_candidates, baseline
from bench.gpu.measure import COPY, deadline
from bench.gpu.rows import (
    BIG,
    CENTRALIZE,
    CHANGES,
    CLIP,
    COPY_BYTES,
    HUGE,
    LLAMA,
    MIRROR,
    OFFLOADED,
    PLAIN,
    RESNET50,
    ROWS,
    SLOPE,
    SPLIT,
    STOCHASTIC,
    STOCHASTIC_BOTH,
    STOCHASTIC_STATES,
    STORED,
    Row,
    in_order,
    low,
)
from bench.gpu.work import Work
from bench.machine_code import cuda_model
from bench.timing import Timings

CPU = torch.device("cpu")
FP32, BF16 = torch.float32, torch.bfloat16


def test_every_row_has_a_name_of_its_own():
    assert len(ROWS) == len(list(in_order()))


@pytest.mark.parametrize("rule", ["SGD+momentum", "Adam", "AMSGrad", "RMSprop"])
def test_every_rule_is_timed_in_all_storages_with_and_without_a_mask(rule):
    of = {
        (row.work.dtype, row.state_dtype) for row in ROWS.values() if row.rule == rule and row.keep_probs == (0.5, 1.0)
    }
    assert of == {(FP32, FP32), (BF16, FP32), (BF16, BF16)}


def test_every_situation_is_timed():
    rows = ROWS.values()
    assert {trick for row in rows for trick in (row.trick,)} == {PLAIN, CLIP, CENTRALIZE, SLOPE, *STORED}
    peers = {"fused", "foreach", "compiled", "recipe", "by hand", "casts"}
    assert {peer for row in rows for peer in row.peers} == peers
    assert {row.work.memory_format for row in rows} == {torch.contiguous_format, torch.channels_last}
    assert any(row.moved for row in rows) and any(row.graph for row in rows) and any(row.backward for row in rows)
    assert {row.grad_offset for row in rows} == {0, 2} == {row.param_offset for row in rows}
    assert {len(row.work.shapes) for row in rows} >= {1, 161, 1000, 10_000}
    sizes = {row.work.numel for row in rows if len(row.work.shapes) == 1}
    assert sizes >= {10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 25 * 10**7, 2**24, 2**28}
    assert LLAMA.numel == 1_235_814_400  # Llama 3.2 1B


@pytest.mark.parametrize(
    ("row", "per_parameter"),
    [
        (Row(BIG), 28), (Row(BIG, "SGD+momentum"), 20), (Row(BIG, "RMSprop"), 20), (Row(BIG, "AMSGrad"), 36),
        (low(BIG), 14), (low(BIG, state_dtype=FP32), 22), (Row(BIG, trick=CLIP), 32), (Row(BIG, trick=SLOPE), 28),
        (Row(BIG, trick=CENTRALIZE), 32), (Row(BIG, graph=True, backward=True), 36),
        (low(BIG, state_dtype=FP32, trick=STOCHASTIC), 22), (low(BIG, trick=STOCHASTIC_BOTH), 14),
        (low(BIG, state_dtype=FP32, trick=SPLIT), 26), (Row(BIG, state_dtype=BF16, trick=STOCHASTIC_STATES), 20),
        (Row(OFFLOADED, "AdamW", trick=MIRROR), 28), (low(BIG, state_dtype=FP32, trick=CHANGES), 22.25),
    ],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_bytes_of_a_row(row, per_parameter):
    assert row.bytes_of(row.state_dtype, row.trick) == per_parameter * BIG.numel == 2 * row.copy_bytes


def test_the_bytes_are_those_of_the_machine_codes_model():
    storages = {(FP32, FP32): "f32", (BF16, FP32): "bf16/f32", (BF16, BF16): "bf16"}
    of = [row for row in ROWS.values() if row.work.shapes == BIG.shapes and row.trick == PLAIN]
    assert len(of) > 10
    for row in of:
        storage, rule = storages[row.work.dtype, row.state_dtype], row.rule.replace("+", " ")
        assert row.bytes_of(row.state_dtype, PLAIN) == cuda_model.traffic_bytes(rule, storage) * BIG.numel


def test_a_copy_has_a_largest_size():
    assert 2 * Row(HUGE).copy_bytes == COPY_BYTES < Row(HUGE).bytes_of(FP32, PLAIN)


def test_shares_of_a_copy_and_ratios():
    row = low(BIG, state_dtype=FP32)  # ours moves 22 bytes a parameter, as the copy does; torch's, in bf16, 14
    candidates = all_candidates(row, ("native",), False)
    names = [candidate.name for candidate in candidates]
    seconds = {"torch fused": [1.0, 2.0, 4.0], COPY: [2.0, 4.0, 8.0], **{name: [4.0] * 3 for name in names[1:]}}
    figures = measure.figures(row, candidates, Timings(seconds), Timings(seconds), baseline(row))
    ours, torchs = figures["ours, native, keep 0.5"], figures["torch fused"]
    assert ours.moved == 22 * BIG.numel and ours.of_copy.median == 1.0 and ours.ratio.median == 2.0
    assert torchs.moved == 14 * BIG.numel and torchs.of_copy.median == pytest.approx(2.0 * 14 / 22)
    assert figures[COPY].of_copy.median == 1.0 and figures[COPY].bandwidth == 22 * BIG.numel / 4.0


def test_without_a_baseline_there_is_no_ratio():
    row = Row(BIG)
    seconds = {COPY: [1.0], "ours, native, keep 1": [1.0]}
    figures = measure.figures(row, all_candidates(row, ("native",), False), Timings(seconds), Timings(seconds), "none")
    assert figures["ours, native, keep 1"].ratio is None


@pytest.mark.parametrize(
    "row", [Row(RESNET50, grad_offset=2), low(RESNET50, grad_offset=2, moved=True)], ids=lambda row: row.name
)
def test_gradients_lie_where_a_bucket_has_them(row):
    work = Work(row, CPU, CPU)
    before = [param.grad.data_ptr() for param in work.params]
    assert {address % 16 for address in before} == {2 * row.work.dtype.itemsize}
    assert {param.data_ptr() % 16 for param in work.params} == {0}
    work.before_step()
    assert (before == [param.grad.data_ptr() for param in work.params]) == (not row.moved)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def picked(seconds, rows, takes):
    """Names that a budget picks where every row takes so many times its guess, and what it leaves out."""
    clock = Clock()
    budget = Budget(seconds, clock)
    names = []
    for row in budget.picks(rows, lambda row: row.likely_seconds):
        names.append(row.name)
        clock.now += takes * row.likely_seconds
    return names, budget.left_out, clock.now


def test_a_budget_takes_the_most_important_rows():
    rows = list(ROWS.values())
    everything, left_out, spent = picked(float("inf"), rows, 1.0)
    assert everything == list(ROWS) and not left_out
    some, left_out, used = picked(spent / 2, rows, 1.0)
    assert some == list(ROWS)[: len(some)] and [*some, *left_out] == list(ROWS)
    assert 0.9 * spent / 2 < used <= spent / 2
    some, left_out, used = picked(20.0, rows, 1.0)  # less than the first row, which is compiled, is expected to take
    assert some[0] == list(ROWS)[1] and used <= 20.0
    assert left_out[next(iter(ROWS))] == "needs some 29 s, 20 s of the budget are left"


@pytest.mark.parametrize("takes", [0.25, 4.0])
def test_a_budget_learns_what_rows_take(takes):
    names, _, used = picked(300.0, list(ROWS.values()), takes)
    assert len(names) > 5 and used < 300.0 + takes * DOUBT  # at most the rows before it has learned are too many
    exact = len(picked(300.0 / takes, list(ROWS.values()), 1.0)[0])
    assert abs(len(names) - exact) <= 8


def test_a_deadline_interrupts():
    begin = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"not ready after 0\.05 s"), deadline(0.05):
        time.sleep(20)
    assert time.perf_counter() - begin < 10
    with deadline(0.02):
        pass
    time.sleep(0.03)  # no alarm is left over
    with deadline(None):
        pass


LINE = "2026/11/26 20:00:0{}.500, {}, 2619, 40, 300.5, {}"


def at(second):
    return clocks.parse(LINE.format(second, 0, "0x0")).time


def test_clocks_of_a_row():
    lines = [
        LINE.format(1, 1980, "0x0"),
        LINE.format(2, 1755, "0x4"),
        LINE.format(3, 1200, "0x0000000000000060"),
        "cut, o",
    ]
    samples = [sample for line in lines if (sample := clocks.parse(line))]
    assert len(samples) == 3
    first = clocks.between(samples, at(1), at(2))
    assert first.samples == 2 and first.sm == (1755, 1867.5, 1980) and first.held_back == ("power cap",)
    assert str(first) == "SM 1868 MHz [1755-1980], memory 2619 MHz, 40 C, 300 W; HELD BACK: power cap"
    last = clocks.between(samples, at(3) + 0.2, at(3) + 0.3)  # shorter than from one sample to the next
    assert last.held_back == ("thermal, by software", "thermal, by hardware")
    assert str(clocks.between(samples, at(1), at(1))).endswith("not held back")
    assert clocks.between(samples, at(8), at(9)) is None
    assert clocks.parse("2026/11/26 20:00:01.500, [N/A], 2619, 40, 300.5, 0x0") is None


@pytest.mark.parametrize("known", [*clocks.REASONS, "none-of-them"])
def test_nvidia_smi_is_asked(known, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    line = LINE.format(1, 1980, "0x0")
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--id=GPU-7*{known}*) echo "{line}";; *) echo "Field is not valid";; esac'
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(clocks, "PERIOD", 0.01)
    sampler = clocks.Sampler("GPU-7")
    end = time.perf_counter() + 20
    while not sampler.samples and sampler._reasons and time.perf_counter() < end:
        time.sleep(0.01)
    sampler.close()
    if known in clocks.REASONS:
        assert sampler.during(at(1), at(1)).sm == (1980, 1980, 1980)
    else:
        assert sampler.why_not == "nvidia-smi: Field is not valid" and not sampler.samples
    assert not sampler._thread.is_alive()


def test_without_a_gpu_nothing_is_asked():
    assert clocks.Sampler(None).why_not == "there is no GPU to ask"
