"""bench.gpu: from beginning to end on a stand-in for torch.cuda and in dry runs, and what it says of ours missing."""

import gc
import json
import weakref
from itertools import pairwise
from types import SimpleNamespace

import bench_workers
import pytest
import torch
from bench_machine import NATIVE, OURS, Event, run

from bench.gpu import __main__ as gpu
from bench.gpu import candidates, compare, device, markdown, once, rows, worker
from lrtricks_fused.step import backends, native

ONE, MANY = "^16M fp32, Adam$", "^(16M fp32, SGD.momentum|ResNet-50 fp32, Adam, moved gradients)$"

SETTINGS = SimpleNamespace(device="cuda", backends=("native", "triton"))  # what a process unpickles without torch


def test_both_backends_are_timed_beside_the_others(machine, tmp_path, capsys):
    code, written = run("--rows", f"{ONE}|{MANY}", "--no-compile", file=tmp_path / "x.json")
    assert code == written["exit_code"] == 0
    assert not written["dry_run"] and not written["missing"] and not written["left_out"] and written["schema"] == 1
    names = {row["name"]: list(row["timed"]) for row in written["rows"]}
    assert names == {
        "16M fp32, Adam": ["torch fused", "torch foreach", "paper recipe", *OURS, "copy"],
        "16M fp32, SGD+momentum": ["torch fused", "torch foreach", *OURS, "copy"],
        "ResNet-50 fp32, Adam, moved gradients": ["torch fused", *OURS, "copy"],
    }
    for row in written["rows"]:
        assert row["baseline"] == "torch fused" and row["clocks"] is None and row["missing"] == {}
        for name, timed in row["timed"].items():
            assert timed.keys() == {"gpu_us", "host_us", "ratio", "bytes", "gb_per_s", "of_copy", "samples_us"}
            assert 0 < timed["gpu_us"]["q1"] <= timed["gpu_us"]["median"] <= timed["gpu_us"]["q3"]
            assert len(timed["samples_us"]) == 3 and timed["host_us"]["median"] > 0
            assert (timed["ratio"]["median"] == 1) == (name == "torch fused")
            assert (timed["of_copy"]["median"] == 1) == (name == "copy")
    output = capsys.readouterr()
    assert "GPU X, compute capability 9.0" in output.out and all(name in output.out for name in OURS)
    assert "The clocks are not known" in output.out


def test_ours_that_cannot_run_is_an_error(machine, monkeypatch, tmp_path, capsys):
    honest = backends.why_not
    monkeypatch.setattr(
        backends, "why_not", lambda name, device: "the dog ate it" if name == "triton" else honest(name, device)
    )
    code, written = run("--rows", ONE, "--no-compile", file=tmp_path / "x.json")
    reason = "ValueError: Invalid backend='triton' for cpu tensors: the dog ate it"
    assert code == written["exit_code"] == 1
    assert written["missing"] == {f"16M fp32, Adam: {name}": reason for name in OURS[2:]}
    assert [name for name in written["rows"][0]["timed"] if name in OURS] == OURS[:2]
    assert f"MISSING {OURS[2]}: {reason}" in capsys.readouterr().out


def test_ours_of_other_bits_is_an_error(machine, implement, tmp_path):
    def wrong(call):
        native.native_step(call)
        with torch.no_grad():
            call.params[-1][-1] += 2**-10

    implement("native", wrong, native.prepare)
    code, written = run("--rows", ONE, *NATIVE, file=tmp_path / "x.json")
    assert code == 1
    told = "ArithmeticError: differs from the reference after 3 steps: parameter 1 of shape (9001,), param: 1 of 9001"
    assert [text[: len(told)] for text in written["missing"].values()] == [told, told]


def test_a_graph_that_does_nothing_is_an_error(machine, tmp_path):
    code, written = run("--rows", "^ResNet-50 fp32, Adam, graph replay$", *NATIVE, file=tmp_path / "x.json")
    assert code == 1 and all("after 7 steps: parameter 0" in text for text in written["missing"].values())
    assert len(written["missing"]) == 2


def test_others_that_cannot_run_are_told(machine, monkeypatch, tmp_path, capsys):
    def fails(params):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setitem(
        candidates.PEERS, "compiled", lambda row: candidates.Peer("torch compiled", fails, torch.float32)
    )
    code, written = run(
        "--rows", "^16M fp32, SGD.momentum, compiled$", "--backends", "native", file=tmp_path / "x.json"
    )
    assert code == 0
    assert written["rows"][0]["failed_peers"] == {"torch compiled": "RuntimeError: no compiler"}
    assert "torch compiled did not run: RuntimeError: no compiler\n" in capsys.readouterr().out


@pytest.mark.parametrize("backends", [["native"], ["native", "triton"]], ids=len)  # an odd and an even number of steps
def test_moved_gradients_have_moved_for_every_candidate(backends, machine, monkeypatch, tmp_path):
    seen = []

    def build(params):
        return lambda: seen.append(params[0].grad.data_ptr())

    monkeypatch.setitem(candidates.PEERS, "fused", lambda row: candidates.Peer("torch fused", build, torch.float32))
    pattern = "^10,000 tensors of 1,000 fp32, Adam, moved gradients$"
    code, written = run("--rows", pattern, "--backends", *backends, file=tmp_path / "x.json")
    rounds = len(written["rows"][0]["timed"]["torch fused"]["samples_us"])
    assert code == 0 and rounds == 3
    assert all(before != after for before, after in pairwise(seen[-rounds:]))


def test_rows_without_room_are_left_out_and_said(machine, monkeypatch, tmp_path, capsys):
    pattern = "^(16M fp32, Adam|1,000 elements fp32, Adam)$"
    small = rows.small(rows.ROWS["1,000 elements fp32, Adam"]).memory_bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (small, 2**36))  # the other one has more candidates
    code, written = run("--rows", pattern, *NATIVE, file=tmp_path / "x.json")
    assert code == 0
    assert [row["name"] for row in written["rows"]] == ["1,000 elements fp32, Adam"]
    assert written["left_out"] == {"16M fp32, Adam": "needs 0.0 GiB of GPU memory, 0.0 GiB are free"}
    assert "Left out:\n  16M fp32, Adam: needs" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**36))
    code, written = run("--rows", pattern, *NATIVE, file=tmp_path / "x.json")
    assert code == 1 and not written["rows"] and len(written["left_out"]) == 2  # nothing was timed


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "nothing was timed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rows", "Adam of the moon"], "argument --rows: no row matches 'Adam of the moon'"),
        (["--rows", "("], "argument --rows: invalid regular expression '('"),
        (["--budget", "0"], "argument --budget: invalid positive value: '0'"),
        (["--backends", "reference"], "argument --backends: invalid choice: 'reference'"),
        (["--json", "/nowhere/x.json"], "Invalid --output /nowhere/x.json: No such file or directory"),
    ],
)
def test_invalid_arguments(arguments, told, capsys):
    with pytest.raises(SystemExit) as exit_:
        gpu.main(["--dry-run", *arguments])
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"), [("cpu", "must be cuda or cuda:N"), ("cuda:2", "torch sees 2 CUDA device(s)")]
)
def test_other_devices_are_refused(name, told, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(SystemExit) as exit_:
        gpu.main(["--in-process", "--device", name])
    assert exit_.value.code == 2
    assert f"Invalid --device {name}: {told}" in capsys.readouterr().err


def test_a_dry_run_says_that_it_measured_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # restored afterwards
    some = "fp32, Adam, (max_norm=1|slope|.*made in it|channels_last)|bf16, Adam, bf16 states"
    pattern = f"^(16M fp32, Adam|ResNet-50 ({some}))$"
    code, written = run("--dry-run", "--rows", pattern, *NATIVE, file=tmp_path / "x.json")
    assert code == written["exit_code"] == 3 and written["dry_run"] and len(written["rows"]) == 6
    assert "NOTHING IS MEASURED" in written["facts"]["GPU"]
    assert capsys.readouterr().out.count("NOTHING WAS MEASURED") == 2
    assert {tuple(set(timed["samples_us"])) for row in written["rows"] for timed in row["timed"].values()} == {
        (1000.0,)
    }


def test_every_step_for_a_profiler(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(once, "ROWS", once.ROWS[:4])  # the native ones
    assert once.main(["--dry-run"]) == 3
    assert len(set(capsys.readouterr().out.splitlines())) == 4


def test_a_process_that_dies_or_hangs_is_replaced():
    apart = worker.Apart(SETTINGS, bench_workers.serve)
    first = apart.facts["pid"]
    try:
        assert apart.run(rows.ROWS["16M fp32, Adam"], 60).pid == int(first)
        dead = apart.run(rows.ROWS["ResNet-50 fp32, Adam, graph replay"], 60)
        assert dead.missing == dict.fromkeys(OURS, "the process that measures died with exit code 7")
        hung = apart.run(rows.ROWS["ResNet-50 fp32, Adam, moved gradients"], 0.2)
        assert hung.missing == dict.fromkeys(OURS, "no answer after 0 s")
        assert apart.run(rows.ROWS["16M fp32, Adam, slope"], 60).lost
        last = apart.run(rows.ROWS["16M fp32, Adam"], 60)
        assert str(last.pid) == apart.facts["pid"] != first
    finally:
        apart.close()
    assert not apart._process.is_alive()


def test_a_process_that_cannot_start_says_why():
    with pytest.raises(ValueError, match="Invalid --device cuda: the dog ate it"):
        worker.Apart(SETTINGS, bench_workers.refuse)


def test_runs_are_compared_by_their_copies(tmp_path, capsys):
    def written(name, us, of_copy):
        timed = {"gpu_us": {"median": us}, "of_copy": {"median": of_copy}}
        row = {"name": "16M", "timed": {"ours, native": timed, "torch fused": timed}}
        (tmp_path / name).write_text(json.dumps({"rows": [row]}))
        return str(tmp_path / name)

    assert compare.main([written("a.json", 200.0, 0.8), written("b.json", 240.0, 0.64)]) == 0
    assert "200.0  240.0 (1.250)" in capsys.readouterr().out
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "c.json")])
    assert "Invalid file" in capsys.readouterr().err


def test_a_run_as_a_table_in_markdown(tmp_path, capsys):
    def timed(us, ratio):
        return {"gpu_us": {"median": us}, "ratio": {"median": ratio}, "of_copy": {"median": 0.875}}

    fused, ours = timed(100.0, 1.0), timed(50.0, 0.5)
    by_hand = {"torch fused, max_norm=1 by hand": timed(200.0, 2.0)}
    clipped = {"ours, native, keep 0.5": timed(1.0, 0.01), "ours, native, keep 0.5, max_norm=1": ours}
    run = {"facts": {"GPU": "X", "torch": "2", "Triton": "3"}, "dry_run": False, "rows": [
        {"name": "16M", "baseline": "torch fused", "timed": {"torch fused": fused, "ours, Triton, keep 1": ours}},
        {"name": "clip", "baseline": "torch fused", "timed": {"torch fused": fused, **by_hand, **clipped}},
        {"name": "lost", "baseline": "torch fused", "timed": {}},
    ]}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert markdown.main([str(tmp_path / "run.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "X; torch 2; Triton 3"
    assert printed[4:6] == [
        "| 16M | 100.0 |  |  |  | 50.0 (0.50, 88%) |",
        "| clip | 200.0 (torch fused, max_norm=1 by hand) | 50.0 (0.25, 88%) |  |  |  |",
    ]
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(SystemExit):
        markdown.main([str(tmp_path / "run.json")])
    assert "Invalid file" in capsys.readouterr().err


@pytest.mark.parametrize(("late", "taken"), [(0, 1), (2, 3), (99, 5)])
def test_a_step_that_the_host_enqueued_too_late_is_taken_again(late, taken, machine, monkeypatch):
    late_at, sleeps, steps = iter([True] * late), [], []
    monkeypatch.setattr(Event, "query", lambda event: next(late_at, False))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: sleeps.append(cycles / device.CYCLES_PER_SECOND))
    device.Cuda(torch.device("cpu")).step_seconds(lambda: steps.append(0), 1e-4)
    wanted = [min(device.SHORTEST_SLEEP * device.LONGER**n, device.LONGEST_SLEEP) for n in range(taken)]
    assert len(steps) == taken
    assert sleeps == pytest.approx(wanted)


def test_a_replay_holds_what_its_graph_reads(machine):
    class Step:
        def __call__(self):
            pass

    step = Step()
    kept = weakref.ref(step)
    replay = device.Cuda(torch.device("cpu")).capture(step)
    del step
    gc.collect()
    assert kept() is not None
    replay()
