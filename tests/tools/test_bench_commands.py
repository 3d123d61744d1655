"""The benchmarks' command lines: what they refuse, and the GPU's from beginning to end on a stand-in for torch.cuda."""

import io
import time
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench import __main__ as bench
from bench import gpu, report
from bench.workloads import Workload
from lrtricks_fused.step import backends, native

SMALL = Workload("small", ((3000,),)), Workload("two", ((700,), (5, 3)))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rows", "("], "argument --rows: invalid regular expression '(': missing ), unterminated subpattern"),
        (["--threads", "0"], "argument --threads: invalid number 0: must be at least 1"),
        (["--threads", "two"], "argument --threads: invalid thread_count value: 'two'"),
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


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def machine(monkeypatch, implement):
    """Two GPUs whose memory is the host's; both backends step on them."""
    current = [0]

    def set_device(device):
        if device.index is None:  # as torch
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        current[0] = device.index

    properties = SimpleNamespace(
        name="GPU X", major=9, minor=0, multi_processor_count=132, total_memory=2**36, L2_cache_size=2**16
    )
    for name, stand_in in {
        "is_available": lambda: True, "device_count": lambda: 2, "current_device": lambda: current[0],
        "set_device": set_device, "synchronize": lambda: None, "_sleep": lambda cycles: None, "Event": Event,
        "empty_cache": lambda: None, "mem_get_info": lambda device: (2**30, 2**36),
        "get_device_properties": lambda device: properties,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    make, flusher = gpu.make_parameters, gpu.cache_flusher
    cpu = torch.device("cpu")
    monkeypatch.setattr(gpu, "make_parameters", lambda workload, device: make(workload, cpu))
    monkeypatch.setattr(gpu, "cache_flusher", lambda device: flusher(cpu))
    monkeypatch.setattr(gpu, "WORKLOADS", SMALL)
    monkeypatch.setattr(backends, "why_not_triton", lambda device: None)
    implement("triton", native.native_step, native.prepare)
    return current


def rows_of(text):
    """Names of the candidates in the tables, in order."""
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return [name for name in names if name != "candidate" and name.strip("-")]


NAMES = ["torch fused", "torch foreach", "paper recipe", "ours, native", "ours, Triton"]


@pytest.mark.parametrize(("device", "index"), [([], 0), (["--device", "cuda"], 0), (["--device", "cuda:1"], 1)])
def test_gpu_times_both_backends(device, index, machine, capsys):
    assert gpu.main(["--quick", "--no-compile", *device]) == 0
    output = capsys.readouterr()
    assert rows_of(output.out) == [*NAMES, "copy", *NAMES]
    assert output.err == ""
    assert machine == [index]
    assert f"our kernels: {' '.join(native.cuda_archs()) or 'none'}; Triton " in output.out


def test_gpu_with_default_arguments(machine, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "FULL", gpu.QUICK)
    build = gpu.torch_optim("Adam", "fused").build  # for there may be no compiler
    monkeypatch.setattr(gpu, "compiled", lambda: gpu.Candidate("torch compiled", build))
    assert gpu.main([]) == 0
    assert rows_of(capsys.readouterr().out).count("torch compiled") == 2


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_gpu_fails_where_ours_is_left_out(backend, machine, monkeypatch, capsys):
    honest = backends.why_not
    eaten = {backend: "the dog ate it"}
    monkeypatch.setattr(backends, "why_not", lambda name, device: eaten.get(name) or honest(name, device))
    assert gpu.main(["--quick", "--no-compile"]) == 1
    (name,) = [name for name, by in gpu.OURS.items() if by == backend]
    output = capsys.readouterr()
    assert f"{name} left out: ValueError: Invalid backend='{backend}' for cpu tensors: the dog ate it\n" in output.err
    assert output.err.endswith(f"bench.gpu: not timed everywhere: {name}\n")
    assert name not in rows_of(output.out)


def test_gpu_fails_where_nothing_fits(machine, monkeypatch, capsys):
    memory = iter([2**30, 0, 0, 0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(memory), 2**36))
    assert gpu.main(["--quick", "--no-compile"]) == 0  # one workload is too large for this GPU
    output = capsys.readouterr()
    assert "left out: needs 1 GiB of GPU memory" in output.out
    assert gpu.main(["--quick", "--no-compile"]) == 1
    assert "not timed everywhere: ours, native; ours, Triton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"), [("cpu", "must be cuda or cuda:N"), ("cuda:2", "torch sees 2 CUDA device(s)"), ("gpu", "must be")]
)
def test_gpu_refuses_other_devices(name, told, machine, capsys):
    with pytest.raises(SystemExit) as exit_:
        gpu.main(["--device", name])
    assert exit_.value.code == 2
    assert f"Invalid --device {name}: {told}" in capsys.readouterr().err


def test_gpu_without_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "nothing was timed" in capsys.readouterr().err
