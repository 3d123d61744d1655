"""Where steps are timed: a CUDA device, or, for a dry run, the CPU with a clock that tells the same of every step."""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from lrtricks_fused.step import native
from lrtricks_fused.step.backends import cuda_name, driver_version, triton_version

from ..candidates import Step

# Of the GPU, in seconds, while the host enqueues a step. The host of a virtual machine takes several times its median
# now and then: where it was late, the step is taken again, after a longer sleep.
SHORTEST_SLEEP, LONGEST_SLEEP, LONGER, CYCLES_PER_SECOND = 2e-4, 0.02, 4, 2e9
STUB_SECONDS = 1e-3  # what a dry run tells of every step


@dataclass(frozen=True)
class Replay:
    """A captured step, which holds what the graph reads: tensors, and the optimizer's table of their addresses."""

    graph: torch.cuda.CUDAGraph
    step: Step

    def __call__(self) -> None:
        self.graph.replay()


class Cuda:
    """Times by events, whole steps that are enqueued while the GPU still sleeps, from cold caches."""

    measures = True

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        self.device = device
        self._properties = torch.cuda.get_device_properties(device)
        # Four times the L2 cache, to be read: written lines would have to be written back within the timed step.
        self._filler = torch.zeros(self._properties.L2_cache_size, dtype=torch.int32, device=device)

    def facts(self) -> dict[str, str]:
        """What a reader must know to place the figures."""
        of = self._properties
        return {
            "GPU": f"{of.name}, compute capability {of.major}.{of.minor}, {of.multi_processor_count} SMs, "
            f"{of.total_memory / 2**30:.0f} GiB, L2 {of.L2_cache_size / 2**20:.0f} MiB",
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, driver's CUDA {cuda_name(driver_version())}",
            "our kernels": " ".join(native.cuda_archs()) or "none",
            "Triton": triton_version() or "none",
        }

    def uuid(self) -> str | None:
        """By which nvidia-smi knows the device."""
        uuid = getattr(self._properties, "uuid", None)
        return None if uuid is None else f"GPU-{uuid}"

    def free_bytes(self) -> int:
        """Memory that is free now."""
        return torch.cuda.mem_get_info(self.device)[0]

    def host_seconds(self, step: Step) -> float:
        """Time that a call takes the host, on an idle device."""
        torch.cuda.synchronize()
        begin = perf_counter()
        step()
        seconds = perf_counter() - begin
        torch.cuda.synchronize()
        return seconds

    def step_seconds(self, step: Step, host: float) -> float:
        """Time of one step on the device, which sleeps first while the host, in so many seconds, enqueues the step."""
        sleep = min(max(2 * host, SHORTEST_SLEEP), LONGEST_SLEEP)
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._filler.max()
            torch.cuda.synchronize()
            torch.cuda._sleep(int(sleep * CYCLES_PER_SECOND))
            start.record()
            step()
            end.record()
            late = start.query()
            torch.cuda.synchronize()
            if not late or sleep == LONGEST_SLEEP:
                return start.elapsed_time(end) / 1e3
            sleep = min(LONGER * sleep, LONGEST_SLEEP)

    def capture(self, step: Step) -> Step:
        """The step, which has been taken before, as the replay of a CUDA graph."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch's notes on CUDA graphs ask
            step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            step()
        return Replay(graph, step)

    def release(self) -> None:
        """Gives memory back that nothing holds any more."""
        if "torch._dynamo" in sys.modules:  # else this would import it, for seconds
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()

    def is_lost(self) -> bool:
        """Whether an earlier error has left the device unusable for this process."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False


class DryRun:
    """Takes all the steps, on the CPU, and measures nothing."""

    measures = False
    device = torch.device("cpu")

    def facts(self) -> dict[str, str]:
        """What runs here."""
        kernels = f"CPU kernels {torch.ops.lrtricks_fused.cpu_isa()}" if not native.load_error else native.load_error
        return {
            "GPU": "none: a dry run, in which NOTHING IS MEASURED",
            "torch": torch.__version__,
            "our kernels": kernels,
            "Triton": f"{triton_version() or 'none'}, interpreted",
        }

    def uuid(self) -> str | None:
        """There is no GPU."""
        return None

    def free_bytes(self) -> int:
        """What an 80 GB GPU would have."""
        return 79 * 2**30

    def host_seconds(self, step: Step) -> float:
        """The stub's time; the step is taken."""
        step()
        return STUB_SECONDS

    def step_seconds(self, step: Step, host: float) -> float:
        """The same."""
        step()
        return STUB_SECONDS

    def capture(self, step: Step) -> Step:
        """The step itself."""
        step()
        return step

    def release(self) -> None:
        """Nothing is kept."""

    def is_lost(self) -> bool:
        """A CPU is not lost."""
        return False


Device = Cuda | DryRun


def copy_step(size: int, device: torch.device) -> Callable[[], Tensor]:
    """A copy of so many bytes (a multiple of 4): what this device's memory gives a torch operation."""
    source = torch.empty(-(-size // 4), dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
