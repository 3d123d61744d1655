"""``lrtricks verify``: it passes here, tells what is wrong with a sabotaged backend, and refuses what it cannot do."""

import inspect
import os
import subprocess
import sys

import pytest
import torch

from lrtricks_fused import optim
from lrtricks_fused.step import backends, native
from lrtricks_fused.tools import cli, doctor, verify
from lrtricks_fused.tools.verify.inventory import RICH

CPU = verify.Target(torch.device("cpu"))
ACCEPTED_ONLY = {"self", "params", "lr", "foreach", "fused", "capturable", "differentiable", "keep_prob", "grad_weight",
                 "centralize", "seed", "backend", "state_dtype", "max_norm", "track_metrics", "master", "rounding",
                 "state_rounding", "track_changes", "names"}  # fmt: skip


def few_checks(quick, interpreted):
    """A part of every kind."""
    return [*verify.all_checks(quick=True)[:6], *verify.FURTHER[:2]]


def test_quick_passes_on_the_cpu_and_reports(tmp_path, capsys):
    file = tmp_path / "report.txt"
    assert cli.main(["verify", "--device", "cpu", "--quick", "--output", str(file)]) == 0
    text = capsys.readouterr().out
    assert text == file.read_text()
    assert "0 failed" in text
    assert "FAILED" not in text
    assert torch.__version__ in text
    assert f"  Triton          {doctor.triton()}\n" in text
    assert "interpreted" not in text
    for section in ("CUDA graph", "CUDA graph of training", "side stream", "no synchronisation", "no allocation"):
        assert f"{section}: {len(RICH)} not run (CUDA only)" in text


def test_only_some_sections(capsys):
    overflow = "overflow on the first step"
    assert cli.main(["verify", "--device", "cpu", "--quick", "--only", "groups", "--only", overflow]) == 0
    text = capsys.readouterr().out
    counts = f"backend: 1 passed\n  groups: 1 passed\n  {overflow}: {len(RICH)} passed"
    assert text.endswith(f"\n\n  {counts}\n\n{2 + len(RICH)} passed, 0 failed, 0 not run\n")


@pytest.mark.parametrize("name", ["group", "CUDA graph"])  # the second has nothing to run here
def test_a_section_without_checks_is_refused(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["verify", "--device", "cpu", "--only", "groups", "--only", name])
    assert exit_.value.code == 2
    assert f"Invalid --only {name}: must, on cpu, be one of backend, SGD, Adam, " in capsys.readouterr().err


def test_no_check_begins_after_so_many_seconds(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 2.0, 3.5, 9.0])
    monkeypatch.setattr(cli, "monotonic", lambda: next(clock))
    checks = [verify.Check("a", str(number), lambda target: None) for number in range(5)]
    monkeypatch.setattr(cli, "all_checks", lambda quick, interpreted: checks)
    assert cli.main(["verify", "--device", "cpu", "--seconds", "3"]) == 0
    text = capsys.readouterr().out
    assert "a: 2 passed\n  a: 3 not run\n" in text
    assert "Stopped: the 3 seconds of --seconds are over.\n\n2 passed, 0 failed, 3 not run\n" in text


def test_an_interrupted_run_reports_what_was_done(monkeypatch, tmp_path, capsys):
    done = []

    def check(check, target):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(check)

    monkeypatch.setattr(cli, "run_check", check)
    assert cli.main(["verify", "--quick", "--device", "cpu", "--output", str(tmp_path / "report")]) == 1
    printed = capsys.readouterr().out
    assert "Stopped: interrupted." in printed and "3 passed, 0 failed" in printed
    assert (tmp_path / "report").read_text() == printed


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_seconds_are_a_positive_number(seconds, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["verify", f"--seconds={seconds}"])
    assert exit_.value.code == 2
    assert f"argument --seconds: invalid positive value: '{seconds}'" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", None)
    for path, told in ((tmp_path / "none" / "report", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["verify", "--device", "cpu", "--output", str(path)])
        assert exit_.value.code == 2
        assert f"Invalid --output {path}: {told}" in capsys.readouterr().err


def test_an_unknown_instruction_set_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("LRTRICKS_CPU_ISA", "mmx")
    assert cli.main(["verify", "--device", "cpu", "--quick"]) == 1
    text = capsys.readouterr().out
    assert "FAILED backend: can run on the device\n  Invalid LRTRICKS_CPU_ISA=mmx: this machine has " in text
    assert "0 passed, 1 failed" in text
    assert "Error" not in text and "/" not in text.partition("FAILED")[2].replace(torch.__version__, "")


def test_every_flag_of_every_class_is_tried_at_another_value():
    for variant in verify.RICH:
        parameters = inspect.signature(getattr(optim, variant.optimizer)).parameters
        options = [v.options for v in verify.VARIANTS if v.optimizer == variant.optimizer]
        for name in parameters.keys() - ACCEPTED_ONLY:
            assert any(row.get(name, parameters[name].default) != parameters[name].default for row in options), name
        centralized = [check.name for check in verify.FURTHER if check.section == "gradient centralization"]
        clipped = [check.name for check in verify.FURTHER if check.section == "clipping"]
        assert str(variant) in centralized and str(variant) in clipped


def test_full_inventory_is_the_product():
    names = {check.name for check in verify.all_checks()}
    assert len(names) >= len(verify.VARIANTS) * 18
    assert {check.section for check in verify.all_checks()} >= {variant.optimizer for variant in verify.RICH}


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert cli.main(["verify", "--device", "cpu", "--backend", "triton", "--quick"]) == 1
    text = capsys.readouterr().out
    told = backends.why_not_triton(torch.device("cpu"))
    assert f"FAILED backend: can run on the device\n  {told}\n\nStopped: the backend cannot run.\n" in text


def test_an_interpreted_target_gets_smaller_work_of_every_kind():
    assert verify.Target(torch.device("cpu"), "triton").interpreted
    assert not CPU.interpreted and not verify.Target(torch.device("cuda"), "triton").interpreted
    further = [*verify.FURTHER, *verify.FROZEN_BITS]
    full, small = (
        [c.name.replace(", few", "") for c in verify.all_checks(True, interpreted) if c not in further]
        for interpreted in (False, True)
    )
    renamed = [name.replace("12 steps", "7 steps").replace("500 tiny", "20 tiny") for name in full]
    assert small == renamed != full
    sections = [{c.section for c in verify.all_checks(True, i)} for i in (False, True)]
    assert sections[0] == sections[1]


def test_interpreted_steps_are_verified():
    # A process of its own: triton reads TRITON_INTERPRET when it is imported.
    program = (
        "import sys; from lrtricks_fused.tools import cli, verify; whole = verify.all_checks; "
        "cli.all_checks = lambda **how: [check for check in whole(**how) if 'resume' in check.section][:1]; "
        "sys.exit(cli.main(['verify', '--device', 'cpu', '--backend', 'triton', '--quick']))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  backend         triton, interpreted: smaller tensors, fewer steps and checks\n" in done.stdout
    assert "1 passed, 0 failed, 0 not run" in done.stdout


def nudge_param(call):
    native.native_step(call)
    param = next(param for param in call.params if param.numel() > 500).view(-1)
    param[499] = torch.nextafter(param[499], param[499] + 1) if param.dtype == torch.float32 else param[499] * 2


def nudge_state(call):
    native.native_step(call)
    for column in call.states.values():
        if column:
            column[-1].view(-1)[:1] *= 1.5


def count_twice(call):
    native.native_step(call)
    call.steps[0] += 1


def crash(call):
    raise RuntimeError("CUDA error: the dog ate it")


@pytest.mark.parametrize(
    ("sabotage", "told"),
    [
        (nudge_param, "param: 1 of 511 elements differ; element 499 is "),
        (nudge_state, "momentum_buffer: 1 of"),
        (count_twice, "parameter 0 of shape (0,), step: 1 of 1 elements differ; element 0 is 0x1.8"),
        (crash, "RuntimeError: CUDA error: the dog ate it"),
    ],
)
def test_sabotage_is_reported(sabotage, told, implement, monkeypatch, capsys):
    implement("native", sabotage)
    monkeypatch.setattr(cli, "all_checks", few_checks)
    assert cli.main(["verify", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert told in text
    assert "FAILED SGD: SGD(momentum=0.8, dampening=0.3" in text
    assert "8 passed" not in text


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x"])
def test_unknown_device(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["verify", "--device", name])
    assert exit_.value.code == 2
    assert f"Invalid --device {name}: must be cpu, cuda or cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "told"), [(0, "sees no CUDA device"), (2, "torch sees 2 CUDA device(s)")])
def test_absent_cuda_device(count, told, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["verify", "--device", "cuda:2"])
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


def test_a_backend_that_cannot_run_stops_the_run(monkeypatch, capsys):
    monkeypatch.setattr(native, "load_error", "the dog ate it")
    assert cli.main(["verify", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert "FAILED backend: can run on the device\n  the dog ate it" in text
    assert "0 passed, 1 failed" in text


def test_a_lost_device_stops_the_run(monkeypatch):
    monkeypatch.setattr(cli, "device_is_lost", lambda device: True)
    checks = [verify.Check("a", "fails", lambda target: "wrong"), verify.Check("b", "never runs", lambda target: None)]
    results = cli.run(checks, CPU)
    assert (list(results.failures), results.not_run) == ([checks[0]], [checks[1]])
    assert "b: 1 not run\n" in cli.report({"device": "none"}, results)


@pytest.mark.parametrize("there", [True, False])
def test_progress_with_and_without_rich(there, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not there:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    with cli.progress(2) as say:
        say(verify.BACKEND, None)
        say(verify.BACKEND, "wrong")
    assert "FAILED backend: can run on the device" in capsys.readouterr().err


def test_difference_is_of_bits():
    zeros, nans = torch.zeros(3), torch.full((3,), float("nan"))
    assert verify.difference(zeros, -zeros) == "3 of 3 elements differ; element 0 is 0x0.0p+0, not -0x0.0p+0"
    assert verify.difference(nans, -nans) is None
    assert "element 0 is nan, not 0x0.0p+0" in verify.difference(nans, zeros)
    assert verify.difference(zeros, zeros.double()) == "torch.float32 (3,), expected torch.float64 (3,)"
    assert verify.difference(zeros[:2], zeros) is not None
