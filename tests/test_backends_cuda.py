"""What the package says about CUDA where there is none, and the parts of a CUDA step that need no GPU."""

import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_host import step as step_on_host
from helpers import assert_same_bits, everything
from inventory import CASES, DTYPES
from tensors import MORE_LAYOUTS, make_params, set_grads

import lrtricks_fused as lrt
from lrtricks_fused import backends, device, ops, table

BUILT = ["8.0", "9.0", "12.0+PTX"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 5), 0), ((8, 0), 1), ((8, 6), 1), ((9, 0), 1), ((10, 0), 0), ((12, 0), 1), ((12, 1), 1), ((13, 0), 1)],
)
def test_architectures(capability, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = backends.why_not_cuda(BUILT, torch.device("cuda"))
    assert (reason is None) == runs
    if not runs:
        assert "8.0, 9.0, 12.0+PTX" in reason
        assert f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}" in reason


def test_a_build_without_cuda_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(ops, "cuda_archs", list)
    assert "USE_CUDA=1 pip install" in backends.why_not("native", torch.device("cuda"))


def test_rocm_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in backends.why_not("native", torch.device("cuda"))


def test_this_library_serves_both_kinds_of_machines():
    # Loaded here, under whatever torch, with kernels inside if it was built with nvcc; needs no library of CUDA's.
    assert ops.load_error is None
    library = Path(ops.__file__).with_name("_native.so")
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed
    assert "libcuda" not in needed and "libtorch_cuda" not in needed
    kernels = b"lrt4cuda11step_kernel" in library.read_bytes()
    assert kernels == bool(ops.cuda_archs())


def test_upload_is_for_devices():
    with pytest.raises(NotImplementedError, match="CPU"):
        torch.ops.lrtricks_fused.upload_(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))


def test_capturable_is_honoured_on_the_cpu():
    results = []
    for capturable in (False, True):
        params = make_params(MORE_LAYOUTS, torch.float32)
        optimizer = lrt.Adam(params, lr=torch.tensor(0.1), keep_prob=0.5, capturable=capturable, backend="native")
        for n in range(3):
            set_grads(params, MORE_LAYOUTS, n)
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES[::9], ids=lambda c: c.name)
def test_strided_operands_go_through_copies(case, dtype, monkeypatch):
    def through_copies(call):
        copies = device._contiguous(call)
        step_on_host(copies)
        device._copy_back(copies, call)

    results = []
    for backend in ("native", "reference"):
        params = make_params(MORE_LAYOUTS, dtype.dtype)
        optimizer = case.make(params, keep_prob=0.5, state_dtype=dtype.state_dtype, backend=backend)
        with monkeypatch.context() as patch:
            patch.setattr(backends, "_STEP", {**backends._STEP, "native": through_copies})
            backends.resolve.cache_clear()
            for n in range(2):
                set_grads(params, MORE_LAYOUTS, n)
                optimizer.step()
        results.append(everything(optimizer))
    backends.resolve.cache_clear()
    assert_same_bits(*results)


class OnCuda(torch.Tensor):
    """A CPU tensor that calls itself a CUDA one."""

    is_cuda = True


def test_a_captured_table_is_never_used_again(monkeypatch):
    monkeypatch.setattr(table, "Parameter", OnCuda)
    param = torch.zeros(600).as_subclass(OnCuda)
    optimizer = lrt.SGD([torch.zeros(600, requires_grad=True)], lr=1.0, backend="reference")
    optimizer.param_groups[0]["params"][0].grad = torch.ones(600)
    call = optimizer._call(optimizer._gather(optimizer.param_groups[0], range(1))[0])
    call.params = [param]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    eager = table.address_table(call)
    assert table.address_table(call) is eager
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert table.address_table(call) is eager  # the graph takes it as it is
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert table.address_table(call) is not eager
    assert call.tables[table._CAPTURED] == [eager]
    table.forget(call.tables)
    assert call.tables == {table._CAPTURED: [eager]}
