"""The native backend on a GPU against the reference on the CPU, bit for bit: the tests' own inventory.

The checks of ``lrtricks verify`` that concern a GPU run here, too. Without a GPU a few cases are stepped by the CPU's
kernels, so that what is to run on a GPU some day is known to run.
"""

import functools

import numpy
import philox_numpy
import pytest
import torch
from helpers import SCALAR_STATES, assert_same_bits, everything
from inventory import CASES, DTYPES, KEEP_PROBS, RICH, SEED, TOLERANCE
from tensors import (
    ALL,
    GUARD,
    MANY,
    MORE_LAYOUTS,
    TensorCase,
    contiguous,
    guards_of,
    make_params,
    set_grads,
    unaligned,
)
from test_index_maps import CONTIGUOUS as SHARDS
from test_index_maps import run as run_shards
from test_metrics import SHAPES as MEASURED
from test_metrics import run as run_metrics
from test_native_equals_reference import _cache_masks  # noqa: F401 (a fixture that holds here, too)
from test_storage import SHAPES as STORED_SHAPES
from test_storage import STORED
from test_storage import run as run_stored

import lrtricks_fused as lrt
from lrtricks_fused.step import backends, device
from lrtricks_fused.step.staged import step_staged
from lrtricks_fused.tools import verify

THERE = torch.cuda.is_available()
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0) if THERE else CPU
EVERY = 1 if THERE else 40  # of the cases
needs_gpu = pytest.mark.skipif(not THERE, reason="no CUDA device")
# Addresses say all about these; the strided rest goes through copies and is stepped apart, so that these do not.
PLAIN = {contiguous, unaligned}
CONTIGUOUS = [
    *(case for case in ALL if {case.param, case.grad} <= PLAIN),
    TensorCase((1300,), unaligned), TensorCase((1300,), grad=unaligned), TensorCase((8192,)), TensorCase((20_001,)),
]  # fmt: skip
STRIDED = [case for case in MORE_LAYOUTS if not {case.param, case.grad} <= PLAIN]
by_dtype = pytest.mark.parametrize("dtype", DTYPES[::EVERY], ids=lambda d: d.name)
both_backends = pytest.mark.parametrize("backend", ["native", "triton"])
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@pytest.fixture(autouse=True)
def _native_runs_here():
    assert backends.why_not("native", CUDA) is None


def on_cpu(tensors):
    """Copies to compare; a number of a state is a tensor, too."""
    return [torch.as_tensor(tensor).detach().cpu() for tensor in tensors]


def run(case, dtype, keep_prob, backend, cases, devices, steps=2):
    """Parameters and states after a few steps with a gradient weight that is no power of two."""
    params = make_params(cases, dtype.dtype, devices=devices)
    optimizer = case.make(
        params, keep_prob=keep_prob, seed=SEED, backend=backend, state_dtype=dtype.state_dtype, grad_weight=0.7
    )
    for step in range(steps):
        set_grads(params, cases, step)
        optimizer.step()
    return on_cpu(everything(optimizer))


def compare(case, dtype, keep_prob, cases, steps=2, devices=None):
    """A run on the GPU (or the given devices), and the reference's on the CPU."""
    ours = run(case, dtype, keep_prob, "native", cases, devices or [CUDA] * len(cases), steps)
    assert_same_bits(ours, run(case, dtype, keep_prob, "reference", cases, [CPU] * len(cases), steps))


@pytest.mark.parametrize("keep_prob", KEEP_PROBS[::EVERY])
@by_dtype
@pytest.mark.parametrize("case", CASES[::EVERY], ids=lambda c: c.name)
def test_cuda_equals_reference(case, dtype, keep_prob):
    compare(case, dtype, keep_prob, CONTIGUOUS)


@by_dtype
@pytest.mark.parametrize("case", CASES[:: 3 * EVERY], ids=lambda c: c.name)
def test_strided_and_mixed_layouts(case, dtype):
    compare(case, dtype, 0.5, STRIDED)
    compare(case, dtype, 0.5, ALL)


@pytest.mark.parametrize("case", CASES[::EVERY], ids=lambda c: c.name)
def test_many_steps(case):
    compare(case, DTYPES[0], 0.3, [TensorCase((1500,)), TensorCase((7, 5))], 12)


@pytest.mark.parametrize("case", CASES[:: 10 * EVERY], ids=lambda c: c.name)
def test_many_tensors(case):
    compare(case, DTYPES[0], 0.5, MANY)


@by_dtype
@pytest.mark.parametrize("case", CASES[:: 3 * EVERY], ids=lambda c: c.name)
def test_nothing_is_written_outside_the_tensors(case, dtype):
    cases = [TensorCase((1027,), unaligned), TensorCase((511,), unaligned), TensorCase((8200,), unaligned), *STRIDED]
    params = make_params(cases, dtype.dtype, devices=[CUDA] * len(cases))
    optimizer = case.make(params, keep_prob=0.5, state_dtype=dtype.state_dtype, backend="native")
    with CUDA:
        for step in range(3):
            set_grads(params, cases, step)
            grads = [param.grad.clone() for param in params]
            optimizer.step()
            assert_same_bits([param.grad for param in params], grads)
            for state in list(optimizer.state.values())[:3]:
                for name, tensor in state.items():
                    if name not in SCALAR_STATES:
                        state[name] = unaligned(tensor)
        states = [t for s in list(optimizer.state.values())[:3] for name, t in s.items() if name not in SCALAR_STATES]
        guards = [guards_of(tensor) for tensor in [*params, *states]]
    assert sum(guard.numel() for guard in guards) > 1000
    assert all(bool((guard == GUARD).all()) for guard in guards)


@needs_gpu
@pytest.mark.parametrize("check", verify.FURTHER, ids=lambda c: f"{c.section}-{c.name}")
def test_checks_of_verify(check):
    assert check.run(verify.Target(CUDA)) is None


@needs_gpu
@pytest.mark.parametrize(
    "check", [c for c in verify.FURTHER if c.section.startswith("CUDA graph")], ids=lambda c: f"{c.section}-{c.name}"
)
def test_graphs_of_triton(check):
    if reason := backends.why_not("triton", CUDA):
        pytest.skip(reason)
    assert check.run(verify.Target(CUDA, "triton")) is None


def stepped(backend):
    """An optimizer that has stepped once, so that its states are there."""
    param = torch.ones(9000, device=CUDA, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = lrt.SGD([param], lr=0.5, momentum=0.5, keep_prob=0.5, backend=backend)
    optimizer.step()
    return optimizer


@needs_gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@both_backends
def test_a_capture_before_any_warm_up_is_refused(backend, monkeypatch):
    if reason := backends.why_not(backend, CUDA):
        pytest.skip(reason)
    optimizer = stepped(backend)
    monkeypatch.setattr("lrtricks_fused.step.device._loaded", set())
    refused = pytest.raises(RuntimeError, match="Invalid capture: no step by sgd on cuda:0")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    optimizer.step()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    torch.cuda.synchronize()


@needs_gpu
def test_the_memory_of_a_dropped_table_waits_for_the_stream_that_reads_it():
    optimizer, side = stepped("native"), torch.cuda.Stream()
    (table,) = optimizer._tables.values()
    rows, address = table.rows.shape, table.rows.data_ptr()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(verify.cuda_checks.SLEEP_CYCLES)
        optimizer.step()
    assert optimizer._tables.pop(*optimizer._tables) is table
    del table
    taken = [torch.empty(rows, dtype=torch.int64, device=CUDA) for _ in range(64)]
    assert not side.query()  # it still reads
    assert address not in map(torch.Tensor.data_ptr, taken)
    torch.cuda.synchronize()


@pytest.mark.parametrize("work", [verify.SPECIAL, verify.STRIDED], ids=lambda w: w.name)
@pytest.mark.parametrize("storage", verify.STORAGES, ids=lambda s: s.name)
@pytest.mark.parametrize("variant", verify.VARIANTS[::EVERY], ids=str)
def test_special_values_and_layouts(variant, storage, work):
    target = verify.Target(CUDA)
    assert verify.check_bits(target, variant=variant, work=work, storage=storage, keep_prob=0.5) is None


@by_dtype
@pytest.mark.parametrize("case", CASES[:: 5 * EVERY], ids=lambda c: c.name)
def test_cpu_and_cuda_in_one_optimizer(case, dtype):
    devices = [(CPU, CUDA)[i % 2] for i in range(len(CONTIGUOUS))]
    compare(case, dtype, 0.5, CONTIGUOUS, devices=devices)


@needs_gpu
def test_scaler_over_cpu_and_cuda_parameters():
    # The scaler's tensors live on the GPU; CPU parameters must not read them before they are there.
    cases = [TensorCase((700,)), TensorCase((900,))]
    results = []
    for backend, devices in (("native", [CPU, CUDA]), ("reference", [CPU, CPU])):
        params = make_params(cases, torch.float32, devices=devices)
        optimizer = lrt.Adam(params, lr=0.02, keep_prob=0.5, seed=SEED, backend=backend)
        on = devices[1]
        scale, found_inf = torch.ones((), device=on), torch.zeros((), device=on)
        optimizer.grad_scale, optimizer.found_inf = scale, found_inf
        for step in range(6):
            set_grads(params, cases, step)
            if on is CUDA:
                torch.cuda._sleep(verify.cuda_checks.SLEEP_CYCLES // 10)
            scale.fill_(2.0 + step)
            found_inf.fill_(float(step in (0, 3)))
            optimizer.step()
        results.append(on_cpu(everything(optimizer)))
    assert_same_bits(*results)


def on_both(run, *args, backend, **kwargs):
    """A run of another file's on the GPU, and the reference's on the CPU."""
    if reason := backends.why_not(backend, CUDA):
        pytest.skip(reason)
    ours = on_cpu(run(*args, backend=backend, device=CUDA, **kwargs))
    assert_same_bits(ours, run(*args, backend="reference", **kwargs))


@both_backends
@pytest.mark.parametrize("first", [0, 6])
@by_dtype
@pytest.mark.parametrize("case", RICH[::EVERY], ids=lambda c: c.name)
def test_shards(case, dtype, first, backend):
    on_both(run_shards, case, dtype, shapes=SHARDS, first=first, backend=backend)


@both_backends
@by_dtype
@pytest.mark.parametrize("case", RICH[::EVERY], ids=lambda c: c.name)
def test_metrics(case, dtype, backend):
    on_both(run_metrics, case, dtype, shapes=MEASURED, backend=backend)


@both_backends
@pytest.mark.parametrize("options", [{}, {"track_metrics": True, "max_norm": 0.3}, {"centralize": True}], ids=str)
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED.keys())
@pytest.mark.parametrize("case", RICH[1 :: 4 * EVERY], ids=lambda c: c.name)
def test_storage(case, stored, options, backend, monkeypatch):
    calls = []
    monkeypatch.setattr(device, "step_staged", lambda call, step: (calls.append(call), step_staged(call, step)))
    on_both(run_stored, case, stored, shapes=STORED_SHAPES, backend=backend, **options)
    if THERE and backend == "native":  # which steps the rest in one pass
        assert bool(calls) == (bool(options) or "momentum_window" in case.kwargs)


@two_gpus
@pytest.mark.parametrize("case", CASES[:: 5 * EVERY], ids=lambda c: c.name)
def test_two_gpus_in_one_optimizer(case):
    devices = [torch.device("cuda", i % 2) for i in range(len(CONTIGUOUS))]
    compare(case, DTYPES[0], 0.5, CONTIGUOUS, devices=devices)


@two_gpus
@pytest.mark.parametrize("check", verify.FURTHER, ids=lambda c: f"{c.section}-{c.name}")
def test_a_gpu_that_is_not_the_current_one(check):
    torch.cuda.set_device(0)
    assert check.run(verify.Target(torch.device("cuda", 1))) is None


@needs_gpu
def test_more_than_2_to_the_31_elements():
    numel = 2**31 + 1000
    if torch.cuda.mem_get_info(CUDA)[0] < 5 * numel:
        pytest.skip(f"needs {5 * numel / 2**30:.1f} GiB of free GPU memory")
    param = torch.zeros(numel, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    param.grad = torch.ones_like(param)
    lrt.SGD([param], lr=1.0, keep_prob=0.5, seed=77, backend="native").step()
    for first in (0, 2**31 - 3000, numel - 2000):
        bits = philox_numpy.keep_bits(numpy.arange(first, first + 2000), 77, 1, 0)
        kept = torch.from_numpy(bits.astype(numpy.int64)) < 32768
        assert torch.equal(param.detach()[first : first + 2000].cpu() != 0, kept)
    del param
    torch.cuda.empty_cache()


def test_steps_agree_with_torch():
    # Independent of our reference: torch's own fused AdamW, on the GPU, without a mask.
    cases = [TensorCase((20_001,)), TensorCase((33, 65))]
    results = []
    for make in (
        functools.partial(lrt.AdamW, backend="native"),
        functools.partial(torch.optim.AdamW, fused=True),
    ):
        params = make_params(cases, torch.float32, devices=[CUDA, CUDA])
        optimizer = make(params, lr=0.02, weight_decay=0.1)
        for step in range(5):
            set_grads(params, cases, step)
            optimizer.step()
        results.append([param.detach().cpu() for param in params])
    tolerance = TOLERANCE[torch.float32]
    torch.testing.assert_close(*results, rtol=tolerance.rtol, atol=tolerance.atol)


@needs_gpu
@both_backends
def test_lossgrad_in_a_graph(backend):
    if reason := backends.why_not(backend, CUDA):
        pytest.skip(reason)

    def tuned_on(device, backend):
        curvatures = torch.linspace(0.5, 4.0, 700, dtype=torch.float64, device=device)
        x = torch.ones(700, dtype=torch.float64, device=device, requires_grad=True)
        optimizer = lrt.SGD([x], lr=1e-3, momentum=0.5, keep_prob=0.5, backend=backend)
        return x, lrt.LossGrad(optimizer, c=1.2), lambda: (curvatures * x * x).sum()

    x, tuned, loss = tuned_on(CUDA, backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            tuned.step(loss)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tuned.step(loss)
    for _ in range(40):
        graph.replay()
    y, expected, loss = tuned_on(CPU, "reference")
    for _ in range(3 + 40):
        expected.step(loss)
    # The losses are summed in another order there, which no r here is near enough to 1/2 to notice.
    assert tuned.param_groups[0]["lr"].item() == expected.param_groups[0]["lr"].item()
    assert_same_bits([x.detach().cpu()], [y.detach()])
