"""What Triton compiles, when and how often; and the oldest version that the package supports.

Without a GPU: the kernels are compiled for one, and a stub notes the launches.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import assert_same_bits, everything, leaves, train
from inventory import FULL, RICH
from test_storage import STORED
from test_storage import run as run_stored
from triton_worker import compiled, interpreted, stub_gpu

import lrtricks_fused as lrt
from lrtricks_fused.step import backends
from lrtricks_fused.step.backends import OLDEST_TRITON

ROOT = Path(__file__).parents[2]
NUMBERS = [0, 1, 16, 17, -1, 2**33, 2**40, -(2**62)]  # values that Triton would compile for anew, if it were let
WORD_VALUES = [0, 1, 16, 17, 2**31, 2**32 - 1, 2**33, 2**47 + 8, 2**61 - 1]  # the same of words, which are addresses
COMPILED_IN_ORDER = ["step_kernel", "prepare_kernel"]  # the second one's launch advances counts: no failure after it
on_each_gpu = pytest.mark.parametrize(
    "gpu", [("cuda", 90, 32), ("hip", "gfx942", 64)], ids=lambda gpu: f"{gpu[0]}-{gpu[1]}"
)
OLDEST = f"{'.'.join(map(str, OLDEST_TRITON))}.0"
PRESENT = next((found.version for found in importlib.metadata.distributions(name="triton")), None)
OLD_NUMPY = "numpy<2.4"  # its interpreter takes arrays of one element for numbers, which later ones refuse
# Of these files what is compiled, a variant of each rule in two dtypes, and what versions may do their own way.
OLD_FILES = [f"tests/kernels/test_triton{part}.py" for part in ("", "_centralize", "_versions")]
OLD_TESTS = (
    "is_compiled or every_dtype and (f64 or bf16-f32) or known_bits or thresholds or beyond or 16_bit or compiles_once"
)


@on_each_gpu
@compiled
def test_a_schedule_compiles_once(gpu):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, *gpu)
        params = leaves((700,), (3,))
        optimizer = RICH[1].make(params, keep_prob=0.5, backend="triton")
        (group,) = optimizer.param_groups
        for n in range(100):
            scalars = dict(lr=(0, 1, 1e-3 / (n + 1))[n % 3], keep_prob=n / 99, grad_weight=1 + n / 100)
            if n % 4 == 0:
                scalars = {name: torch.tensor(x, dtype=(torch.float32, torch.float64)[n % 8 // 4])
                           for name, x in scalars.items()}  # fmt: skip
            group.update(scalars, weight_decay=(0, 0.1)[n % 2], betas=(0.9 - n / 200, 0.99), maximize=n % 5 == 0,
                         seed=(0, 1, 16, 2**64 - 1)[n % 4])  # fmt: skip
            optimizer.found_inf = torch.tensor(0.0) if n % 6 == 0 else None
            train(optimizer, range(n, n + 1))
        assert stub.compilations == COMPILED_IN_ORDER
        assert stub.launches == [("prepare_kernel", 1), ("step_kernel", 2)] * 100


@compiled
@pytest.mark.skipif(PRESENT != OLDEST, reason="test_triton_code.py compiles these")
@pytest.mark.parametrize("stored", ["nothing", *(STORED if FULL else ["offload", "stochastic fp16"])])
def test_every_kernel_is_compiled(stored):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, "cuda", 90, 32)
        if stored == "nothing":
            optimizer = RICH[1].make(leaves((700,), (9, 8)), backend="triton", max_norm=0.3, centralize=True)
            with optimizer.add_slopes_to({}):
                train(optimizer, range(1))
            assert {"find_means", "find_clip", "add_columns"} <= set(stub.compilations)
        else:
            run_stored(RICH[1], STORED[stored], "triton")
        assert "step_kernel" in stub.compilations


@compiled
def test_the_number_of_tensors_compiles_nothing():
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, "cuda", 90, 32)
        for sizes, programs in [([5], [1, 1]), ([8192, 8193, 0, 5] * 4, [1, 16]), ([3] * 129, [2, 129]), ([0], [1])]:
            stub.launches.clear()
            train(lrt.SGD(leaves(*((size,) for size in sizes)), backend="triton"), range(1))
            assert stub.launches == list(zip(("prepare_kernel", "step_kernel"), programs, strict=False))
        assert stub.compilations == COMPILED_IN_ORDER


@compiled
def test_the_number_of_slices_compiles_nothing():
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, "cuda", 90, 32)
        kernels = ["sum_partials", "find_means", "prepare_kernel", "step_kernel"]
        for shapes, programs in [([(1, 1)], [1, 1, 1, 1]), ([(33, 256)], [5, 2, 1, 2]), ([(5,), (16, 1)], [1, 1, 1, 2]),
                                 ([(17, 2)] * 16, [3, 9, 1, 16]), ([(1, 2**20)], [32, 1, 1, 128])]:  # fmt: skip
            stub.launches.clear()
            train(lrt.SGD(leaves(*shapes), centralize=True, backend="triton"), range(1))
            assert stub.launches == list(zip(kernels, programs, strict=True))
        assert stub.compilations == (first := ["step_kernel", *kernels[:-1]])
        train(lrt.SGD(leaves((5,), (5, 0)), centralize=True, backend="triton"), range(1))  # no slice: the plain kernel
        assert stub.launches[4:] == [("prepare_kernel", 1), ("step_kernel", 1)]
        assert stub.compilations == [*first, "step_kernel"]


@compiled
def test_words_of_any_value_compile_once():
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, "cuda", 90, 32)
        from lrtricks_fused.triton_kernels.upload import WORDS, in_odd_numbers, words_constexprs, write_words

        shared = words_constexprs("cuda")
        target = torch.zeros(3, dtype=torch.int64)
        for n in range(100):
            words = [WORD_VALUES[(n + k) % len(WORD_VALUES)] for k in range(n % (WORDS + 1))]
            numbers = NUMBERS[n % 8], NUMBERS[n % 7], NUMBERS[n % 6]
            write_words[(1,)](target[n % 3 :], *numbers, in_odd_numbers(words), **shared, num_warps=1)
        assert stub.compilations == ["write_words"]


class OnDevice(torch.Tensor):
    """A CPU tensor that says it is not one."""

    is_cpu = False


@compiled
def test_a_capture_finds_write_words_loaded():
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, "cuda", 90, 32)
        from lrtricks_fused.triton_kernels import upload

        upload._load.cache_clear()
        capturing = False
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        for count, programs in ((40, [2]), (161, [6]), (480, [15]), (481, [15, 1]), (1000, [15, 15, 2])):
            capturing = False
            upload._load.cache_clear()
            stub.launches.clear()
            target, words = torch.zeros(count, dtype=torch.int64).as_subclass(OnDevice), torch.arange(count)
            for _ in range(2):
                upload.upload(target, words)
                assert torch.equal(target, words)
                assert stub.launches == [("write_words", 1)]
            capturing = True
            upload.upload(target, words)
            assert stub.launches == [("write_words", number) for number in [1, *programs]]
            assert stub.compilations == ["write_words"]
        upload._load.cache_clear()


@pytest.mark.parametrize(("tensors", "uploads"), [(161, 1), (1000, 3)])  # ResNet-50's; many small ones
@compiled
def test_launches_of_moved_gradients_in_a_captured_graph(tensors, uploads):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub = stub_gpu(monkeypatch, "cuda", 90, 32)
        from lrtricks_fused.triton_kernels import launch, upload

        capturing = False
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        monkeypatch.setattr(launch, "upload", lambda t, words: upload.upload(t.as_subclass(OnDevice), words))
        params = leaves(*((3,) for _ in range(tensors)))
        optimizer = lrt.SGD(params, backend="triton")
        train(optimizer, range(1))
        kept, stepped = [param.grad for param in params], ["prepare_kernel", "step_kernel"]
        capturing = True
        for launches in (["write_words"] * uploads + stepped, stepped):
            stub.launches.clear()
            if launches != stepped:
                for param, grad in zip(params, kept, strict=True):
                    param.grad = grad.clone()
            optimizer.step()
            assert [name for name, _ in stub.launches] == launches
        upload._load.cache_clear()


@interpreted
def test_the_first_launch_of_write_words_writes_nothing():
    from lrtricks_fused.triton_kernels import upload

    made, empty = [], torch.empty
    with mock.patch("torch.empty", lambda *size, **how: made.append(empty(*size, **how).fill_(-7)) or made[-1]):
        upload._load.__wrapped__(torch.device("cpu"))
    assert [tensor.tolist() for tensor in made] == [[-7]]


@interpreted
def test_upload_while_a_graph_is_captured_writes_every_word_and_no_other():
    from lrtricks_fused.triton_kernels.upload import WORDS, upload

    with mock.patch("torch.cuda.is_current_stream_capturing", return_value=True):
        for count in (0, 1, 15, WORDS, WORDS + 1):
            words = torch.tensor([WORD_VALUES[k % len(WORD_VALUES)] for k in range(count)], dtype=torch.int64)
            target = torch.full((count + 2,), -7)
            upload(target[1:-1].as_subclass(OnDevice), words)
            assert torch.equal(target, torch.cat([torch.tensor([-7]), words, torch.tensor([-7])]))


@interpreted
def test_upload_while_a_graph_is_captured_writes_a_column_and_a_table():
    from lrtricks_fused.triton_kernels.upload import WORDS, upload

    target = torch.full((WORDS + 1, 3), -7)
    table, column = torch.arange(9).view(3, 3), torch.arange(WORDS + 1) + 2**40
    with mock.patch("torch.cuda.is_current_stream_capturing", return_value=True):
        upload(target[:3].as_subclass(OnDevice), table)
        upload(target.as_subclass(OnDevice)[:, 1], column)
    expected = torch.full((WORDS + 1, 3), -7)
    expected[:3] = table
    expected[:, 1] = column
    assert torch.equal(target, expected)


@interpreted
def test_words_that_do_not_travel_are_refused():
    from lrtricks_fused.triton_kernels.upload import WORDS, upload

    with mock.patch("torch.cuda.is_current_stream_capturing", return_value=True):
        for word in (-1, 2**61, -(2**63), 2**63 - 1):
            target, words = torch.full((WORDS + 1,), -7), torch.zeros(WORDS + 1, dtype=torch.int64)
            words[-1] = word
            with pytest.raises(ValueError, match=rf"Invalid words from .*{word}.*must be in \[0, {2**61}\)"):
                upload(target.as_subclass(OnDevice), words)
            assert (target == -7).all()  # though all of the first launch could


def test_a_cpu_tensor_without_the_interpreter_is_an_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.resolve.cache_clear()
    with pytest.raises(ValueError, match=r"backend='triton' for cpu tensors: .*set TRITON_INTERPRET=1"):
        lrt.SGD(leaves((3,)), backend="triton")


@interpreted
def test_torch_compile_runs_the_step_as_it_is():
    results = []
    for backend in ("triton", "reference"):
        optimizer = RICH[1].make(leaves((700,), (5,)), keep_prob=0.5, backend=backend)
        if backend == "triton":
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        train(optimizer, range(3))
        results.append(everything(optimizer))
    assert_same_bits(*results)


def old_triton() -> Path:
    """Where the oldest supported version lies, unpacked once."""
    directory = ROOT / "build" / f"triton-{OLDEST}"
    if not directory.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        partial = directory.with_name(f"{directory.name}.{os.getpid()}")
        what = ["--no-deps", "--only-binary", ":all:", "--target", str(partial), f"triton=={OLDEST}", OLD_NUMPY]
        done = subprocess.run([*pip, *what], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"pip cannot install triton {OLDEST}: {done.stderr.strip()[-300:]}")
        partial.rename(directory)
    return directory


@pytest.mark.skipif(not FULL, reason="LRTRICKS_FULL=1 (make test-all) installs the oldest Triton")
def test_the_oldest_triton():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(old_triton()), os.environ.get("PYTHONPATH", "")])}
    here = dict(cwd=ROOT, env=environment, capture_output=True, text=True)
    version = subprocess.run([sys.executable, "-c", "import triton; print(triton.__version__)"], **here)
    assert version.stdout.strip() == OLDEST, version.stderr
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OLD_FILES, "-k", OLD_TESTS]
    done = subprocess.run(tests, **here)
    assert done.returncode == 0, done.stdout[-5000:]
