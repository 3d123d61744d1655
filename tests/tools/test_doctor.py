"""``lrtricks doctor`` on machines that this one is not: what it says runs, what it advises, its exit status."""

import importlib.metadata
import importlib.util
import io
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lrtricks_fused import optim
from lrtricks_fused.step import backends, native
from lrtricks_fused.tools import cli, doctor

NOT_BUILT = "the native library is not built (pip install --no-build-isolation .)"
NO_TRITON = "triton is not installed (pip install triton)"
BUILT = "the native library is built for compute capabilities 8.0, 9.0, 12.0+PTX, not "


class Machine:
    """Replaces what the package asks of its surroundings; at first no GPU, an untouched native library, Triton 3.9."""

    def __init__(self, monkeypatch, capsys):
        self.patch, self.capsys = monkeypatch.setattr, capsys
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        self.gpus()
        self.triton("3.9.0")
        self.built(["8.0", "9.0", "12.0+PTX"])
        self.driver(0)
        self.patch(torch.version, "hip", None)
        self.patch(doctor, "unseen_gpu", list)

    def gpus(self, *capabilities):
        def properties(device):
            major, minor = capabilities[device.index]
            return SimpleNamespace(name="GPU X", major=major, minor=minor, gcnArchName="gfx942", total_memory=2**34)

        self.patch(torch.cuda, "is_available", lambda: bool(capabilities))
        self.patch(torch.cuda, "device_count", lambda: len(capabilities))
        self.patch(torch.cuda, "get_device_properties", properties)
        self.patch(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])

    def triton(self, version):
        find, known = importlib.util.find_spec, importlib.metadata.version
        self.patch(importlib.util, "find_spec", lambda n: (version and object()) if n == "triton" else find(n))
        self.patch(importlib.metadata, "version", lambda name: version if name == "triton" else known(name))

    def built(self, archs, error=None):
        self.patch(native, "cuda_archs", lambda: archs)
        self.patch(native, "load_error", error)

    def driver(self, version, toolkit=13000):
        self.patch(backends, "driver_version", lambda: version)
        self.patch(native, "cuda_version", lambda: toolkit)

    def doctor(self):
        """Exit status and the report's lines, blanks as one."""
        status = cli.main(["doctor"])
        output = self.capsys.readouterr()
        assert output.err == ""  # the warning of a slow backend is the report's business
        assert "\x1b" not in output.out
        return status, [re.sub(" +", " ", line).strip() for line in output.out.splitlines()]


@pytest.fixture
def machine(monkeypatch, capsys):
    return Machine(monkeypatch, capsys)


def assert_has(lines, *wanted):
    missing = [line for line in wanted if line not in lines]
    assert not missing, "\n".join([*missing, "not in", *lines])


def test_without_a_gpu(machine):
    status, lines = machine.doctor()
    assert status == 0
    assert_has(
        lines,
        "Triton 3.9.0",
        f"native library CPU kernels {torch.ops.lrtricks_fused.cpu_isa()}, CUDA kernels 8.0 9.0 12.0+PTX",
        f"GPU none that torch {torch.__version__}, {doctor.torch_build()}, can see",
        "cpu native yes takes it",
        "cpu triton no Triton runs on a GPU; on the CPU only interpreted: set TRITON_INTERPRET=1 before Python starts",
        "cpu reference yes",
        "optimizer cpu",
        "Nothing to do: every device steps with the best backend made for it.",
    )
    assert_has(lines, *(f"{name} native" for name in optim.__all__))


def test_no_native_library(machine):
    machine.built([], NOT_BUILT)
    status, lines = machine.doctor()
    assert status == 1
    assert_has(lines, f"native library unusable: {NOT_BUILT}", f"cpu native no {NOT_BUILT}",
               "cpu reference yes takes it", "RAdam reference", "To do:",
               f"cpu: for the native backend: {NOT_BUILT}")  # fmt: skip
    assert not any("for the triton backend" in line for line in lines)


def test_no_native_library_but_a_gpu(machine):
    machine.built([], NOT_BUILT)
    machine.gpus((9, 0))
    status, lines = machine.doctor()
    assert status == 1  # on the CPU only the reference runs
    assert_has(lines, "cuda:0 triton yes takes it", "SGD reference triton")


def test_built_without_cuda(machine):
    machine.built([])
    machine.gpus((9, 0))
    status, lines = machine.doctor()
    reason = backends.why_not_cuda([], torch.device("cuda:0"))
    assert "nvcc on PATH, build it again: USE_CUDA=1 pip install" in reason
    assert status == 0
    assert_has(lines, "cuda:0 GPU X, compute capability 9.0, 16.0 GiB", f"cuda:0 native no {reason}",
               "cuda:0 triton yes takes it", "cuda:0 reference yes", "optimizer cpu cuda:0", "AdamW native triton",
               "To do:", f"cuda:0: for the native backend: {reason}")  # fmt: skip
    assert any(line.endswith("CUDA kernels none (built without CUDA)") for line in lines)


def test_an_architecture_that_is_not_built_beside_one_that_is(machine):
    machine.gpus((10, 0), (9, 0))
    status, lines = machine.doctor()
    reason = f"{BUILT}10.0; build it again with TORCH_CUDA_ARCH_LIST=10.0"
    assert status == 0
    assert_has(lines, f"cuda:0 native no {reason}", "cuda:0 triton yes takes it", "cuda:1 native yes takes it",
               "cuda:1 triton yes", "optimizer cpu cuda:0 cuda:1", "SGD native triton native",
               f"cuda:0: for the native backend: {reason}")  # fmt: skip
    assert not any(line.startswith("cuda:1: for") for line in lines)


@pytest.mark.parametrize(
    ("version", "reason"), [(None, NO_TRITON), ("3.5.1", "triton 3.5.1 is too old: 3.6 or later is needed")]
)
def test_no_usable_triton(version, reason, machine):
    machine.triton(version)
    machine.gpus((7, 5))
    status, lines = machine.doctor()
    assert status == 1
    assert_has(lines, f"Triton {reason}", f"cuda:0 triton no {reason}", "cuda:0 reference yes takes it",
               "SGD native reference", f"cuda:0: for the triton backend: {reason}",
               f"cuda:0: for the native backend: {BUILT}7.5; build it again with TORCH_CUDA_ARCH_LIST=7.5")  # fmt: skip


def test_no_triton_is_no_matter_where_the_native_backend_runs(machine):
    machine.triton(None)
    machine.gpus((9, 0))
    status, lines = machine.doctor()
    assert status == 0
    assert_has(lines, "cuda:0 native yes takes it", f"cuda:0 triton no {NO_TRITON}",
               "Nothing to do: every device steps with the best backend made for it.")  # fmt: skip


def test_a_driver_older_than_the_toolkit(machine):
    machine.gpus((9, 0))
    machine.driver(12080)
    status, lines = machine.doctor()
    reason = backends.why_not_driver(13000)
    assert "built with CUDA 13.0, but the driver serves no later than 12.8; install a driver for CUDA 13" in reason
    assert status == 0
    assert_has(lines, "driver's CUDA 12.8", f"cuda:0 native no {reason}", "cuda:0 triton yes takes it",
               "SGD native triton", f"cuda:0: for the native backend: {reason}")  # fmt: skip
    machine.driver(13000)
    _, lines = machine.doctor()
    assert_has(lines, "driver's CUDA 13.0", "cuda:0 native yes takes it")


@pytest.mark.parametrize(
    ("triton", "numpy", "fits"),
    [("3.6.0", "2.4.0", 0), ("3.6.1", "3.0.0rc1", 0), ("3.6.0", "2.3.5", 1), ("3.7.0", "2.4.0", 1)],
)
def test_a_numpy_that_the_interpreter_cannot_use(triton, numpy, fits, machine, monkeypatch):
    machine.triton(triton)
    machine.gpus((9, 0))
    machine.patch("numpy.__version__", numpy)
    reason = f"the interpreter of triton {triton} cannot use numpy {numpy} (pip install 'numpy<2.4')"
    for interpret in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        _, lines = machine.doctor()
        assert_has(lines, f"numpy {numpy}", "cuda:0 triton yes")
        (row,) = [line for line in lines if line.startswith("cpu triton")]
        assert (reason in row) != fits
        assert ("set TRITON_INTERPRET=1" in row) == (interpret == "0")
        assert row.startswith("cpu triton yes") == (fits and interpret == "1")


def test_rocm(machine):
    machine.patch(torch.version, "hip", "6.4")
    machine.gpus((9, 4))
    status, lines = machine.doctor()
    assert status == 0
    assert_has(lines, f"torch {torch.__version__}, built for ROCm 6.4", "cuda:0 GPU X, gfx942, 16.0 GiB",
               "cuda:0 native no the native library has no kernels for ROCm", "cuda:0 triton yes takes it",
               "Nothing to do: every device steps with the best backend made for it.")  # fmt: skip
    machine.triton(None)
    status, lines = machine.doctor()
    assert status == 1
    assert_has(lines, f"cuda:0: for the triton backend: {NO_TRITON}")
    assert not any(line.startswith("cuda:0: for the native backend") for line in lines)


def test_an_instruction_set_that_is_not_there(machine, monkeypatch):
    monkeypatch.setenv("LRTRICKS_CPU_ISA", "mmx")
    status, lines = machine.doctor()
    assert status == 1
    (row,) = [line for line in lines if line.startswith("cpu native")]
    assert row.startswith("cpu native no takes it Invalid LRTRICKS_CPU_ISA=mmx: this machine has ")
    assert any(line.startswith("cpu: every step fails: Invalid LRTRICKS_CPU_ISA=mmx") for line in lines)


def test_the_optimizers_are_asked_and_not_assumed(machine):
    class Other(optim.Adam):
        def __init__(self, params, *, backend="reference"):
            super().__init__(params, backend=backend)

    machine.patch(optim, "Adam", Other)
    _, lines = machine.doctor()
    assert_has(lines, "Adam reference", "AdamW native", "cpu native yes takes it", "cpu reference yes takes it")


def test_a_gpu_whose_driver_is_there_but_torch_cannot_use(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nvidia = "/proc/driver/nvidia/version"
    monkeypatch.setattr(doctor, "Path", lambda name: tmp_path if name == nvidia else tmp_path / "none")
    (line,) = doctor.unseen_gpu()
    assert line.startswith(f"torch {torch.__version__}, {doctor.torch_build()}, sees no GPU, but an NVIDIA driver")


def test_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert doctor.nvcc() == "not found, in CUDA_HOME/bin or on PATH; only needed to build the CUDA kernels"
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    path.chmod(0o755)
    assert doctor.nvcc() == f"{path}, V13.0.88"
    path.write_text("#!/nowhere/sh\n")
    assert doctor.nvcc().startswith(f"{path} does not run: ")


@pytest.mark.parametrize(("version", "told"), [(0, "none"), (12080, "12.8"), (13000, "13.0")])
def test_driver(version, told, monkeypatch):
    monkeypatch.setattr(backends, "driver_version", lambda: version)
    assert doctor.driver_version() == told


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("there", [True, False])
def test_tables_of_rich_are_for_terminals(there, machine, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    if not there:
        monkeypatch.setitem(sys.modules, "rich.table", None)
    diagnosis, terminal, pipe = doctor.diagnose(), Terminal(), io.StringIO()
    doctor.print_report(diagnosis, terminal)
    doctor.print_report(diagnosis, pipe)
    assert pipe.getvalue() == doctor.plain_report(diagnosis)
    assert ("│ takes it │" in terminal.getvalue()) == there
    assert (terminal.getvalue() == pipe.getvalue()) != there
    for line in [*diagnosis.facts.values(), *optim.__all__, "takes it", "Nothing to do"]:
        assert line in terminal.getvalue()


def test_asking_leaves_no_trace(machine, caplog):
    machine.built([], NOT_BUILT)
    machine.triton(None)
    backends.resolve.cache_clear()
    doctor.diagnose()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        backends.resolve("auto", torch.device("cpu"))
    backends.resolve.cache_clear()
    assert "slow reference backend" in caplog.text


def test_as_a_process_through_a_pipe():
    done = subprocess.run([sys.executable, "-m", "lrtricks_fused.tools.cli", "doctor"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lrtricks doctor\n  lrtricks_fused  ")
    assert "\x1b" not in done.stdout
    assert re.search(r"^  cpu +native +yes +takes it$", done.stdout, re.MULTILINE)
