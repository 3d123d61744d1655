"""Ratios of earlier runs: kept by processor, and told apart from worse ones beyond the noise."""

from functools import partial

import pytest

import bench.__main__ as bench
from bench import candidates, experiments, known, report, timing, workloads
from bench.experiments import Bar, Experiment
from bench.timing import Spread
from bench.workloads import Workload


def of(median, spread=0.02):
    return Spread(median, round(median - spread / 2, 3), round(median + spread / 2, 3))


def test_a_file_keeps_processors_apart(tmp_path):
    file = tmp_path / "ratios.json"
    assert known.load("A", file) == {}
    known.record("A", {"x": of(0.9), "y": of(0.5)}, file)
    known.record("B", {"x": of(1.1)}, file)
    known.record("A", {"y": of(0.4)}, file)
    assert known.load("A", file) == {"x": of(0.9), "y": of(0.4)}
    assert known.load("B", file) == {"x": of(1.1)}
    assert known.load("C", file) == {}


@pytest.mark.parametrize(
    ("before", "after", "is_worse"),
    [
        (of(1.0), of(1.0), False),
        (of(1.0), of(1.05), False),  # half of both spreads, and 4 % from run to run
        (of(1.0), of(1.07), True),
        (of(1.0, 0.2), of(1.07, 0.2), False),  # both runs were noisy
        (of(1.0), of(0.5), False),
    ],
)
def test_worse(before, after, is_worse):
    found = known.worse({"x": before, "gone": of(1.0)}, {"x": after, "new": of(9.0)})
    assert [row.work for row in found] == (["x"] if is_worse else [])
    assert all("was 1.000" in str(row) for row in found)


def test_where_larger_is_better_a_smaller_ratio_is_worse():
    for now, is_worse in ((80.0, False), (40.0, False), (20.0, True)):
        found = known.worse({"x": Spread(40.7, 37.7, 41.8)}, {"x": Spread(now, now - 1, now + 1)}, frozenset({"x"}))
        assert [str(row) for row in found] == ([f"x: {now:.3f}, was 40.700 [37.700-41.800]"] if is_worse else [])


@pytest.fixture
def one_row(monkeypatch, tmp_path):
    """A bench of one small row, and a file of known ratios of its own; the caches are taken for small."""
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 2**20)
    adam = candidates.torch_optim("Adam", "fused")
    bar = Bar("small / torch fused", "ours", adam.name, 1.0)
    row = Experiment(Workload("small", ((70,),)), "Adam", (adam, candidates.ours("Adam")), (bar,))
    monkeypatch.setattr(bench, "all_experiments", lambda compiled, threads: [row])
    file = tmp_path / "ratios.json"
    monkeypatch.setattr(bench, "load", partial(known.load, file=file))
    monkeypatch.setattr(bench, "record", partial(known.record, file=file))
    return file


def test_check_exits_with_1_where_a_ratio_is_worse(one_row, capsys, monkeypatch):
    command = ["--quick", "--rows", "^small", "--threads", "1"]
    assert bench.main([*command, "--check"]) == 0
    assert "0 of 1 ratios are known" in capsys.readouterr().out
    monkeypatch.setattr(report, "MOST_OF_OTHERS", 9.0)
    assert bench.main([*command, "--record"]) == 0
    (processor,) = known.json.loads(one_row.read_text())
    known.record(processor, {"small / torch fused": Spread(1e-6, 1e-6, 1e-6)}, one_row)
    for options in (["--check"], ["--check", "--record"]):  # compared with what was known before
        assert bench.main([*command, *options]) == 1
        assert "worse: small / torch fused" in capsys.readouterr().out
    before = one_row.read_text()
    monkeypatch.setattr(report, "MOST_OF_OTHERS", -1.0)
    assert bench.main([*command, "--record"]) == 1
    assert "not recorded: others had too much" in capsys.readouterr().out and one_row.read_text() == before


def test_candidates_step_the_same_memory():
    seen = []

    def spy(candidate):
        def build(params):
            step = candidate.build(params)
            seen.append((params, step.optimizer))
            return step

        return candidates.Candidate(candidate.name, build)

    workload = Workload("small", ((70, 3), (5,)))
    both = [spy(candidates.torch_optim("AMSGrad", "fused")), spy(candidates.ours("AMSGrad"))]
    timing.time_candidates(workload, both, timing.Effort(allocations=1, rounds=3, seconds=1))
    (params, first), (others, second) = seen
    assert params is others
    for param in params:
        states = first.state[param], second.state[param]
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert states[0][name] is states[1][name]
        assert states[0]["step"] is not states[1]["step"]


def test_fresh_gradients_lie_elsewhere_and_hold_the_same():
    workload = workloads.SMALL[-1]
    params = workload.parameters()
    before = [param.grad for param in params]
    workload.before_step(params)
    for grad, param in zip(before, params, strict=True):
        assert param.grad is not grad and (param.grad == grad).all()


@pytest.mark.parametrize("installed", [False, True])
def test_deepspeed_has_rows_where_it_is_installed(installed, monkeypatch):
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: object() if installed else None)
    rows = [bar.work for row in experiments.all_experiments() for bar in row.bars if "DeepSpeed" in bar.work]
    assert bool(rows) == installed
    assert all(len({candidate.name for candidate in row.candidates}) == len(row.candidates)
               for row in experiments.all_experiments())  # fmt: skip
