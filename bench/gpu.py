"""Times Adam steps on a GPU: ``python -m bench.gpu [--device cuda:N] [--quick] [--no-compile]``.

Ours masked, by both backends, against torch fused, foreach and compiled without a mask and the paper's recipe,
interleaved. CUDA events around whole steps that are enqueued while the GPU still sleeps: time on the GPU, and the
host's own beside it.
"""

import argparse
import gc
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

import lrtricks_fused
from lrtricks_fused.step import native
from lrtricks_fused.step.backends import triton_version
from lrtricks_fused.tools.cli import parse_device

from .candidates import KEEP_PROB, Candidate, Step, copy, recipe, torch_optim
from .experiments import traffic_bytes
from .tables import LEAST_WIDTH
from .timing import Effort, Timings
from .workloads import BIG, MANY, RESNET50, Workload

HUGE = Workload("256M fp32", ((256 * 2**20,),))
WORKLOADS = (BIG, HUGE, RESNET50, MANY)
BASELINE = "torch fused"
OURS = {"ours, native": "native", "ours, Triton": "triton"}  # to the backend
FULL, QUICK = Effort(rounds=100, warm_up=8), Effort(rounds=10, warm_up=8)
LONGEST_SLEEP, CYCLES_PER_SECOND = 0.02, 2e9
HEADER = ("candidate", "GPU us", "ratio, median [q1-q3]", "host us", "GB/s (of copy)")
FOOTNOTE = (
    f"Ratios: to {BASELINE} without mask, round by round, candidates interleaved in rotating order, the L2 cache "
    "filled with other data before each step, which is enqueued while the GPU sleeps (beyond about 1,000 launches "
    "the GPU still waits for the host). Host: of a call on an idle GPU. GB/s: the least bytes such a step can move; a "
    "copy counts a read and a write."
)
Cells = tuple[str, ...]


def compiled() -> Candidate:
    """torch.optim.Adam without a mask, its step compiled."""

    def build(params: list[Tensor]) -> Step:
        optimizer = torch.optim.Adam(params, lr=torch.tensor(1e-3, device=params[0].device), capturable=True)
        return torch.compile(lambda: optimizer.step(), fullgraph=False)

    return Candidate("torch compiled", build)


def ours(name: str) -> Candidate:
    """One of OURS: Adam with a mask."""

    def build(params: list[Tensor]) -> Step:
        return lrtricks_fused.Adam(params, lr=1e-3, keep_prob=KEEP_PROB, backend=OURS[name]).step

    return Candidate(name, build)


def all_candidates(with_compiled: bool) -> list[Candidate]:
    """In the order of the table."""
    without_mask = [torch_optim("Adam", "fused"), torch_optim("Adam", "foreach")]
    return [*without_mask, *([compiled()] if with_compiled else []), recipe(), *map(ours, OURS)]


def make_parameters(workload: Workload, device: torch.device) -> list[Tensor]:
    """Normal parameters with normal gradients, drawn on the device."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in workload.shapes:
        param, grad = (torch.randn(shape, generator=generator, device=device, dtype=workload.dtype) for _ in range(2))
        params.append(param.requires_grad_())
        param.grad = grad
    return params


def cache_flusher(device: torch.device) -> Callable[[], object]:
    """Reads four times the L2 cache: written lines would have to be written back within the timed step."""
    filler = torch.zeros(4 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    return filler.view(torch.int32).max


def host_seconds(step: Step) -> float:
    """Time that a call takes the host, on an idle device."""
    torch.cuda.synchronize()
    begin = perf_counter()
    step()
    seconds = perf_counter() - begin
    torch.cuda.synchronize()
    return seconds


def warm_up(candidates: list[Candidate], params: list[Tensor], times: int) -> tuple[dict[str, Step], Timings]:
    """Those candidates' steps that run, and host times of the later half of the calls.

    All step the same parameters and gradients, with states of their own.
    """
    steps, host = {}, Timings()
    for candidate in candidates:
        try:
            step = candidate.build(params)
            seconds = [host_seconds(step) for _ in range(times)]
        except Exception as error:  # no compiler for torch.compile, or no memory left
            why = str(error).partition("\n")[0]
            print(f"{candidate.name} left out: {type(error).__name__}: {why}", file=sys.stderr)
            continue
        steps[candidate.name] = step
        host.seconds[candidate.name] = seconds[times // 2 :]
    return steps, host


def time_step(step: Step, flush: Callable[[], object], host: float) -> float:
    """Seconds of one step on the device, which sleeps first while the host enqueues the step."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush()
    torch.cuda.synchronize()
    torch.cuda._sleep(int(min(2 * host, LONGEST_SLEEP) * CYCLES_PER_SECOND))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(workload: Workload, candidates: list[Candidate], effort: Effort, device: torch.device) -> list[Cells]:
    """Rows of the table for one workload; its memory is free again afterwards."""
    ready, host = warm_up(candidates, make_parameters(workload, device), effort.warm_up)
    flush, order = cache_flusher(device), list(ready.items())
    timings = Timings({name: [] for name in ready})
    end = perf_counter() + effort.seconds
    gc.collect()
    gc.disable()
    for round_ in range(effort.rounds if order else 0):
        first = round_ % len(order)
        for name, step in order[first:] + order[:first]:
            timings.seconds[name].append(time_step(step, flush, host.step(name).median))
        if perf_counter() > end:
            break
    gc.enable()
    return [row(name, workload, timings, host) for name in ready]


def row(name: str, workload: Workload, device: Timings, host: Timings) -> Cells:
    """One candidate's cells."""
    seconds = device.step(name).median
    ratio = device.ratio(name, BASELINE) if BASELINE in device.seconds else None
    speed = ""
    if "copy" in device.seconds:
        copied = 2 * workload.dtype.itemsize * workload.numel / device.step("copy").median
        moved = copied if name == "copy" else traffic_bytes(workload, "Adam", name) * workload.numel / seconds
        speed = f"{moved / 1e9:.0f} ({moved / copied:.0%})"
    return (
        name,
        f"{seconds * 1e6:.1f}",
        f"{ratio.median:.3f} [{ratio.q1:.3f}-{ratio.q3:.3f}]" if ratio else "",
        f"{host.step(name).median * 1e6:.1f}",
        speed,
    )


def markdown(rows: list[Cells]) -> str:
    """A Markdown table whose columns also line up on a terminal."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])] for cells in (HEADER, ruler, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)


def needed_bytes(workload: Workload, candidates: int) -> int:
    """Parameters, gradients, two states per candidate, a copy's two buffers and the recipe's temporaries."""
    return (2 + 2 * candidates + 2 + 4) * workload.dtype.itemsize * workload.numel


def facts(device: torch.device) -> list[str]:
    """What a reader must know to place the figures."""
    properties = torch.cuda.get_device_properties(device)
    return [
        f"- GPU: {properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB, "
        f"L2 {properties.L2_cache_size / 2**20:.0f} MiB",
        f"- torch {torch.__version__}, CUDA {torch.version.cuda}; our kernels: "
        f"{' '.join(native.cuda_archs()) or 'none'}; Triton {triton_version() or 'none'}",
    ]


def make_parser() -> argparse.ArgumentParser:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (the current one, the default) or cuda:N")
    parser.add_argument("--quick", action="store_true", help="few rounds: a smoke test")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, slow for many tensors")
    return parser


def cuda_device(name: str) -> torch.device:
    """The device of that name, with its index; ValueError for others than CUDA devices that are there."""
    device = parse_device(name)
    if device.type != "cuda":
        raise ValueError(f"Invalid --device {name}: must be cuda or cuda:N")
    return device


def print_workload(workload: Workload, candidates: list[Candidate], effort: Effort, device: torch.device) -> set[str]:
    """Print the table of one workload, if the GPU has room for it; the names of the candidates that were timed."""
    print(f"\n{workload.name}, Adam, ours and the recipe with keep {KEEP_PROB:g}")
    needed = needed_bytes(workload, len(candidates))
    if needed > torch.cuda.mem_get_info(device)[0]:
        print(f"left out: needs {math.ceil(needed / 2**30)} GiB of GPU memory")
        return set()
    # A copy of what fits into a cache says nothing about memory.
    with_copy = [copy()] if len(workload.shapes) == 1 else []
    rows = measure(workload, [*candidates, *with_copy], effort, device)
    print(f"\n{markdown(rows)}", flush=True)
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    return {name for name, *_ in rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Print Markdown tables; 1 where there is no GPU, or ours was not timed on all workloads that it has room for."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.gpu: torch sees no CUDA device; nothing was timed", file=sys.stderr)
        return 1
    try:
        device = cuda_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    torch.cuda.set_device(device)
    candidates, effort = all_candidates(not arguments.no_compile), QUICK if arguments.quick else FULL
    print("\n".join(facts(device)), flush=True)
    timed = [names for workload in WORKLOADS if (names := print_workload(workload, candidates, effort, device))]
    print(f"\n{textwrap.fill(FOOTNOTE, LEAST_WIDTH)}")
    missing = [name for name in OURS if not timed or any(name not in names for names in timed)]
    if missing:
        print(f"bench.gpu: not timed everywhere: {'; '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
