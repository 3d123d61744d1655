"""bench/gpu_day.sh with a stand-in for Python: what it runs, in which order, what it brings back, and its status."""

import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from inventory import FULL

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_day.sh"
# Notes what it is asked for, says where it runs, and does what DO says for the first argument list that holds a key.
PYTHON = """#!/usr/bin/env bash
echo "${*//$'\\n'/ }" >>"$CALLS"
case "$*" in *"import xdist"*) exit 1;; *get_device_capability*) echo 9.0; exit;; esac
[[ -e lrtricks_fused/triton_kernels/step.py && -e bench/gpu_day.sh ]] || { echo "not in the tree"; exit 99; }
file=$(sed -n 's/.*--json \\([^ ]*\\).*/\\1/p' <<<"$*")
[[ -z $file ]] || echo '{}' >"$file"
while read -r key what; do
  if [[ -n $key && "$*" == *"$key"* ]]; then eval "$what"; fi
done <<<"${DO:-}"
echo "library $(readlink lrtricks_fused/_native.so)"
"""
LONG = ["import sys", "cli doctor", "--backend native", "--backend triton", "--backend native", "--backend triton",
        "import xdist", "test_cuda.py", "bench.gpu"]  # fmt: skip


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def day(tmp_path, monkeypatch):
    """Runs the script on a PATH of the stand-in's; ``day.calls()`` is what the stand-in was asked for."""
    (tmp_path / "bin").mkdir()
    python = executable(tmp_path / "python", PYTHON)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHON": str(python), "CALLS": str(tmp_path / "calls"),
        "OUT": str(tmp_path / "out"), "HOME": str(tmp_path),
    }  # fmt: skip

    class Day:
        out, bin = tmp_path / "out", tmp_path / "bin"

        def start(self, *arguments, **extra):
            return subprocess.Popen(
                ["bash", str(SCRIPT), *arguments], env=environment | extra, cwd=tmp_path, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def __call__(self, *arguments, **extra):
            process = self.start(*arguments, **extra)
            self.output = process.communicate()[0]
            return process.returncode

        def calls(self):
            return (tmp_path / "calls").read_text().splitlines()

        def summary(self):
            return (self.out / "summary.txt").read_text()

    return Day()


def asked(day, wanted):
    """Whether the stand-in was asked for these, in order, and for nothing else."""
    calls = day.calls()
    return len(calls) == len(wanted) and all(part in call for part, call in zip(wanted, calls, strict=True))


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)
    if shellcheck := shutil.which("shellcheck"):
        assert subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True).stdout == ""


def test_all_parts_in_order(day):
    assert day() == 0, day.output
    assert asked(day, LONG), day.calls()
    quick = ["--quick" in call for call in day.calls() if " verify " in call]
    assert quick == [True, True, False, False]
    assert "all parts passed" in day.summary() and "ncu              not run: ncu is not on PATH" in day.summary()
    assert {path.name for path in day.out.iterdir()} == {"summary.txt", "bench.json", "bench.txt", "logs.tar.gz"}
    with tarfile.open(day.out / "logs.tar.gz") as logs:
        assert {"logs/doctor.txt", "logs/full-triton.txt", "logs/test-cuda.txt"} <= set(logs.getnames())


def test_a_short_day_has_no_full_checks_and_gives_the_rest_to_the_bench(day):
    assert day(BUDGET="480") == 0, day.output
    assert asked(day, [*LONG[:4], *LONG[6:]]), day.calls()
    seconds = int(day.calls()[-1].split("--budget ")[1].split()[0])
    assert 440 <= seconds <= 470


def test_a_failure_does_not_end_the_day(day):
    assert day(DO="cli doctor\n doctor exit 4") == 1
    assert "doctor           FAILED (status 4)" in day.summary() and "FAILURES above" in day.summary()
    assert asked(day, LONG)


@pytest.mark.parametrize("part", ["triton", "test_cuda.py", "bench.gpu"])
def test_any_failure_is_the_days(part, day):
    assert day(DO=f"{part} exit 1") == 1
    assert asked(day, LONG)


def test_a_part_that_hangs_is_ended(day):
    timeout = shutil.which("timeout")
    executable(day.bin / "timeout", f'#!/bin/sh\necho "limit $3"\nshift 3\nexec {timeout} -k 1 1 "$@"\n')
    assert day("--parts", "doctor bench", DO="doctor sleep 60") == 1
    assert "doctor           TIME OVER" in day.summary() and "bench            ok" in day.summary()
    assert "limit 60\n" in day.output


def test_a_part_without_time_is_a_failure(day):
    assert day("--parts", "doctor", BUDGET="10") == 1
    assert "doctor           NO TIME" in day.summary()


def test_profilers_that_are_there_are_used(day):
    for name in ("ncu", "compute-sanitizer"):
        executable(day.bin / name, f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n')
    assert day("--parts", "ncu sanitizer") == 0, day.output
    (ncu, memcheck, racecheck) = day.calls()
    assert ncu.startswith("ncu --clock-control none --profile-from-start off") and ncu.endswith("bench.gpu.once")
    assert "--tool memcheck" in memcheck and "--tool racecheck" in racecheck and "--only Adam" in racecheck


def test_a_library_that_does_not_load_is_built(day):
    executable(day.bin / "nvcc", "#!/bin/sh\n")
    assert day("--parts", "library", DO="load_error exit 1") == 1
    assert ["setup.py" in call for call in day.calls()] == [False, False, True, False]


def test_variants_are_timed_in_the_place_of_the_library(day, tmp_path):
    folder = tmp_path / "libraries"
    folder.mkdir()
    for name in ("wide", "narrow"):
        (folder / f"{name}.so").touch()
    assert day("--parts", "variants", "--variants", str(folder)) == 0, day.output
    *timed, compared = day.calls()
    assert len(timed) == 3 and all("--backends native" in call for call in timed)
    assert [Path(name).stem for name in compared.split()[2:]] == ["built", "narrow", "wide"]
    assert f"library {folder / 'wide.so'}" in day.output and f"library {folder / 'narrow.so'}" in day.output


def test_a_log_that_is_too_large_is_cut(day):
    assert day("--parts", "doctor test-cuda", DO="test_cuda.py head -c 17000000 /dev/urandom") == 0, day.output
    assert "too large for logs.tar.gz: of test-cuda.txt the last MB is kept" in day.summary()
    assert (day.out / "logs.tar.gz").stat().st_size < 15 * 2**20
    with tarfile.open(day.out / "logs.tar.gz") as logs:
        sizes = {log.name: log.size for log in logs.getmembers()}
    assert sizes["logs/test-cuda.txt"] == 10**6 and 0 < sizes["logs/doctor.txt"] < 1000


def test_a_day_that_is_broken_off_brings_back_what_there_is(day, tmp_path):
    process = day.start("--parts", "doctor test-cuda", DO="test_cuda.py sleep 60")
    end = time.monotonic() + 30
    while time.monotonic() < end and "test_cuda" not in "".join(day.calls() if (tmp_path / "calls").exists() else []):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 1 and "BROKEN OFF" in day.summary() and "doctor           ok" in day.summary()
    with tarfile.open(day.out / "logs.tar.gz") as logs:
        assert "logs/doctor.txt" in logs.getnames()


def test_a_dry_run_tells_that_it_was_one(day):
    assert day("--dry-run", "--parts", "doctor ncu sanitizer", DO="bench.gpu exit 3") == 3, day.output
    assert "DRY RUN" in day.summary() and asked(day, ["cli doctor", "bench.gpu.once --dry-run"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fast"], "Invalid argument --fast"),
        (["--parts"], "Invalid --parts: a value is missing"),
        (["--parts", "doctor dog"], "Invalid --parts dog: must be some of library doctor"),
        (["--variants", "/nowhere"], "Invalid --variants /nowhere: holds no .so"),
    ],
)
def test_invalid_arguments(arguments, told, day):
    assert day(*arguments) == 2
    assert told in day.output and not day.out.exists()


def test_an_invalid_budget(day):
    assert day(BUDGET="1h") == 2
    assert "Invalid BUDGET=1h" in day.output


@pytest.mark.skipif(not FULL, reason="make test-all: two minutes")
def test_a_dry_run_of_the_whole_day(tmp_path):
    done = subprocess.run([str(SCRIPT), "--dry-run"], env={**os.environ, "OUT": str(tmp_path / "out")})
    assert done.returncode == 3
