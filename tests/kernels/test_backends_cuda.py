"""What the package says about CUDA where there is none, and the parts of a CUDA step that need no GPU."""

import contextlib
import dataclasses
import subprocess
from types import SimpleNamespace

import pytest
import torch
from cuda_on_host import run as run_on_host
from helpers import assert_same_bits, call_of, everything
from inventory import CASES, DTYPES
from tensors import MORE_LAYOUTS, make_params, set_grads

import lrtricks_fused as lrt
from lrtricks_fused.step import backends, device, layouts, native, streams, table
from lrtricks_fused.step.keep import IndexMap

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


@pytest.mark.parametrize(
    ("built", "serves"),
    [
        ("9.0", {(9, 0), (9, 1)}),
        ("9.0+PTX", {(9, 0), (9, 1), (10, 0), (10, 3), (12, 1)}),
        ("9.0a", {(9, 0)}),
        ("9.0a+PTX", {(9, 0)}),
        ("10.0f", {(10, 0), (10, 3)}),
        ("10.3f", {(10, 3)}),
        ("10.0f+PTX", {(10, 0), (10, 3)}),
        ("8.0 9.0a 12.0f", {(8, 0), (9, 0), (12, 1)}),
    ],
)
def test_architectures_of_one_device_or_family(built, serves, monkeypatch):
    found = set()
    for capability in ((8, 0), (9, 0), (9, 1), (10, 0), (10, 3), (12, 1)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, here=capability: here)
        if backends.why_not_cuda(built.split(), torch.device("cuda")) is None:
            found.add(capability)
    assert found == serves


def driver(monkeypatch, version, toolkit):
    """A GPU that the library is built for, behind a driver for that CUDA; the library is built with that toolkit."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backends, "driver_version", lambda: version)
    monkeypatch.setattr(native, "cuda_archs", lambda: BUILT)
    monkeypatch.setattr(native, "cuda_version", lambda: toolkit)


@pytest.mark.parametrize(
    ("toolkit", "version", "runs"),
    [(13000, 12080, 0), (13000, 13000, 1), (13010, 13000, 1), (12080, 12020, 1), (12080, 13000, 1), (12080, 11080, 0)],
)
def test_drivers(toolkit, version, runs, monkeypatch):
    driver(monkeypatch, version, toolkit)
    reason = backends.why_not("native", torch.device("cuda"))
    assert (reason is None) == runs
    if not runs:
        told = f"built with CUDA {toolkit // 1000}.{toolkit % 1000 // 10}, but the driver serves no later than "
        assert f"{told}{version // 1000}.{version % 1000 // 10}; " in reason
        assert "CUDA 12: 525, CUDA 13: 580 or later" in reason


def test_auto_takes_triton_where_the_driver_is_too_old(monkeypatch):
    for version, taken in ((12080, "triton"), (13000, "native")):
        driver(monkeypatch, version, 13000)
        assert backends.choose("auto", torch.device("cuda"))[0].name == taken


def test_the_library_knows_its_toolkit():
    assert (native.cuda_version() // 1000 >= 12) == bool(native.cuda_archs())


def test_a_build_without_cuda_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(native, "cuda_archs", list)
    assert "USE_CUDA=1 pip install" in backends.why_not("native", torch.device("cuda"))


def test_rocm_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in backends.why_not("native", torch.device("cuda"))


def test_this_library_serves_both_kinds_of_machines():
    # Loaded here, under whatever torch, with kernels inside if it was built with nvcc; needs no library of CUDA's.
    assert native.load_error is None
    library = native.LIBRARY
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed
    assert "libcuda" not in needed and "libtorch_cuda" not in needed
    kernels = b"lrt4cuda11step_kernel" in library.read_bytes()
    assert kernels == bool(native.cuda_archs())


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
def test_strided_operands_go_through_copies(case, dtype, on_host):
    results = []
    for backend in ("native", "reference"):
        params = make_params(MORE_LAYOUTS, dtype.dtype)
        optimizer = case.make(params, keep_prob=0.5, state_dtype=dtype.state_dtype, backend=backend)
        for n in range(2):
            set_grads(params, MORE_LAYOUTS, n)
            optimizer.step()
        results.append(everything(optimizer))
    assert_same_bits(*results)


def table_of(**known):
    """What device.py asks of a table."""
    return SimpleNamespace(kernels={}, staged=None, grad_code=0, **known)


class OnCuda(torch.Tensor):
    """A CPU tensor that calls itself a CUDA one."""

    is_cuda = True


class OnSecondGpu(OnCuda):
    """Of a device that is not the current one."""

    device = torch.device("cuda", 1)


def call_on(params, **options):
    """What SGD hands to a backend, of other parameters than it steps."""
    optimizer = lrt.SGD([torch.zeros(600, requires_grad=True)], lr=1.0, backend="reference", **options)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(600)
    call = call_of(optimizer)
    call.params, call.grads = params, [torch.full_like(param, 1.0) for param in params]
    return call


def test_a_captured_table_is_never_used_again(monkeypatch):
    call = call_on([torch.zeros(600).as_subclass(OnCuda)])
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


class Gpus:
    """Two of them: which is current, and on which a graph is being captured. Of a step, only its beginning is real."""

    def __init__(self, monkeypatch):
        self.current, self.capturing, self.launched = 0, None, []
        monkeypatch.setattr(device, "_loaded", set())
        monkeypatch.setattr(device, "address_table", self.address_table)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.current == self.capturing)

    @contextlib.contextmanager
    def device(self, index):
        before, self.current = self.current, index
        try:
            yield
        finally:
            self.current = before

    def address_table(self, call, upload, takes):
        assert self.current == 1
        return table_of(is_mapped=False, has_slabs=False, use_on_current_stream=self.note_stream)

    def note_stream(self):
        self.launched.append(f"stream of {self.current}")

    def run(self, call, table):
        self.launched.append(self.current)

    def step(self, **options):
        device.step_on_device(call_on([torch.zeros(600).as_subclass(OnSecondGpu)], **options), self.run, None)
        assert self.current == 0


def test_a_step_belongs_to_the_parameters_device_and_its_stream(monkeypatch):
    gpus = Gpus(monkeypatch)
    gpus.step()
    assert gpus.launched == ["stream of 1", 1]


def test_a_capture_needs_a_warm_up_of_the_same_kernels(monkeypatch):
    gpus = Gpus(monkeypatch)
    gpus.capturing = 1
    refused = pytest.raises(RuntimeError, match=r"Invalid capture: no step by sgd on cuda:1 .* take one as a warm-up")
    with refused:
        gpus.step()
    assert gpus.launched == []
    gpus.capturing = 0  # on another device: no capture of this step
    gpus.step()
    gpus.capturing = 1
    gpus.step(keep_prob=0.5, maximize=True)
    for other in (dict(momentum=0.5), dict(momentum=0.5, nesterov=True)):
        gpus.capturing = 1
        with refused:
            gpus.step(**other)
        gpus.capturing = None
        gpus.step(**other)


def test_other_kernels_are_told_apart():
    calls = [call_on([torch.zeros(3, 200)], **how) for how in (dict(), dict(centralize=True), dict(momentum_window=2))]
    calls += [dataclasses.replace(calls[0], sums=torch.zeros(())), dataclasses.replace(calls[0], rule="adam")]
    calls += [dataclasses.replace(calls[0], index_maps=[IndexMap(0, 600, 0)])]
    calls += [dataclasses.replace(calls[0], params=[torch.zeros(600, dtype=dtype.dtype)]) for dtype in DTYPES[1:3]]
    momentum = call_on([torch.zeros(600)], momentum=0.5)
    calls += [momentum, dataclasses.replace(momentum, states={"momentum_buffer": [torch.zeros(600).bfloat16()]})]

    def kernels(call, run):
        return device._kernels(call, table_of(is_mapped=call.has_shards), run)

    assert len({kernels(call, run) for call in calls for run in (native._run, run_on_host)}) == 2 * len(calls)
    same = call_on([torch.zeros(9)], keep_prob=0.3, weight_decay=0.1, seed=5)
    assert kernels(same, native._run) == kernels(calls[0], native._run)


def test_a_tables_memory_waits_for_every_stream_that_read_it(monkeypatch):
    noted = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, s: noted.append((tensor.data_ptr(), s)))

    def use_on(stream):
        monkeypatch.setattr(streams, "raw_stream", lambda device: hash(stream))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: stream)
        placed.use_on_current_stream()

    placed = table.AddressTable(call_on([torch.zeros(3, 200)], centralize=True), torch.Tensor.copy_)
    placed._device = torch.device("cuda:0")
    memory = [placed.rows, placed.chunk_tensors, placed.prepared, placed.slice_scratch]
    use_on("placed here")
    use_on("placed here")
    assert noted == [(tensor.data_ptr(), "placed here") for tensor in memory]
    scratch = placed.slope_scratch()
    assert noted[4:] == [(scratch.data_ptr(), "placed here")]
    use_on("side")
    assert noted[5:] == [(tensor.data_ptr(), "side") for tensor in [*memory, scratch]]


def test_a_clipped_step_by_gradients_of_two_dtypes_can_be_captured(monkeypatch):
    capturing, written = [False], []
    monkeypatch.setattr(device, "_loaded", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])

    def run_nothing(call, table):
        pass

    def run_squares(call, table, out):
        written.append((table.grad_code, [len(grad) for grad in call.grads], len(table.chunk_tensors)))
        out.copy_(torch.tensor([float(len(grad)) for grad in call.grads]))

    sizes = [600, 5, 9000, 70]
    call = call_on([torch.zeros(size).as_subclass(OnCuda) for size in sizes])
    call.grads = [grad.bfloat16() if i % 2 else grad for i, grad in enumerate(call.grads)]
    call.steps, call.param_indices = [call.steps[0].clone() for _ in sizes], [*range(len(sizes))]
    call.clip, call.tables = torch.ones((), dtype=torch.float64), {}
    for now in (False, True):
        capturing[0] = now
        own = dataclasses.replace(call, norms=[])
        device.prepare_on_device(own, run_nothing, torch.Tensor.copy_, layouts.fits_one_pass)
        out = torch.zeros(len(sizes), dtype=torch.float64)
        device.squares_on_device(own, out, run_squares)
        assert out.tolist() == sizes
        device.step_on_device(own, run_nothing, torch.Tensor.copy_, layouts.fits_one_pass)
    assert written == [(0, [600, 9000], 3), (2, [5, 70], 2)] * 2


def test_a_graphs_tables_hold_no_scratch(monkeypatch):
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    call = call_on([torch.zeros(600).as_subclass(OnCuda)])
    eager = table.address_table(call, torch.Tensor.copy_)
    eager.rows = eager.rows.as_subclass(OnCuda)
    assert eager.slope_scratch() is eager.slope_scratch()
    capturing[0] = True
    assert table.address_table(call, torch.Tensor.copy_) is eager
    assert eager._slope_scratch is None
    assert eager.slope_scratch() is not eager.slope_scratch()
    assert eager._slope_scratch is None


def test_integers_are_kept_with_the_table():
    uploads = []

    def upload(target, words):
        uploads.append(words.tolist())
        target.copy_(words)

    placed = table.AddressTable(call_on([torch.zeros(600)]), upload)
    uploads.clear()
    own = placed.integers((3, 1, 2))
    assert own.tolist() == [3, 1, 2] and own is placed.integers((3, 1, 2)) is not placed.integers((3, 1))
    assert uploads == [[3, 1, 2], [3, 1]]


def test_what_a_tables_elements_are_decides_the_kernel():
    last = torch.zeros(2, 3, 5, 5).to(memory_format=torch.channels_last)
    calls = [call_on([torch.zeros(600)]), call_on([last])]
    calls += [dataclasses.replace(calls[0], index_maps=[IndexMap(base, 600, 0)]) for base in (0, 512, 1)]
    mapped = [table.AddressTable(call, torch.Tensor.copy_).is_mapped for call in calls]
    assert mapped == [False, True, False, False, True]
