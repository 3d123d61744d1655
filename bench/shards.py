"""Steps of many small tensors in training by FSDP2 and DDP, to those of plain tensors: ``python -m bench.shards``.

Each rank trains three models side by side, whose parameters are as large on it: a plain one, one that ``fully_shard``
cuts and one that DDP replicates. A round trains each once; what is timed is ``optimizer.step()``, after a barrier: that
of the slowest rank, for which the others wait. The backward pass before it leaves new gradients, and nothing of the
optimizer's in the caches.
"""

import argparse
import os
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lrtricks_fused import Adam

from .tables import make_table, terminal
from .timing import Timings

BAR = 1.1  # times the step of a plain model
WARM_UP = 8  # rounds: a step is repeated from its third on
PLAIN = "plain"


class ManyTensors(torch.nn.Module):
    """As many parameters, each of which is multiplied by the input."""

    def __init__(self, tensors: int, numel: int) -> None:
        super().__init__()
        self.params = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(numel)) for _ in range(tensors)])

    def forward(self, x: Tensor) -> Tensor:
        """Scalar: the sum of all products; ``x`` of shape (numel,)."""
        return torch.stack([(param * x).sum() for param in self.params]).sum()


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """Each parameter is a DTensor, and its gradient a view of what was reduced."""
    fully_shard(model)
    return model


def replicated(model: torch.nn.Module) -> torch.nn.Module:
    """Its gradients are views of DDP's buckets."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


Wrap = Callable[[torch.nn.Module], torch.nn.Module]
WRAPPERS: dict[str, Wrap] = {PLAIN: lambda model: model, "FSDP2": sharded, "DDP": replicated}


def _train(rank: int, given: argparse.Namespace, port: int, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=given.ranks)
    torch.set_num_threads(given.threads)
    trained = {}
    for name, wrap in WRAPPERS.items():
        numel = given.numel * (given.ranks if wrap is sharded else 1)
        model = wrap(ManyTensors(given.tensors, numel))
        trained[name] = model, Adam(model.parameters(), keep_prob=0.5), numel
    timings = Timings({name: [] for name in trained})
    for round_ in range(WARM_UP + given.rounds):
        for name, (model, optimizer, numel) in trained.items():
            model(torch.randn(numel)).backward()
            dist.barrier()
            start = perf_counter()
            optimizer.step()
            if round_ >= WARM_UP:
                timings.seconds[name].append(perf_counter() - start)
            optimizer.zero_grad(set_to_none=not given.keep_grads)
    results[rank] = timings.seconds
    dist.destroy_process_group()


def measure(given: argparse.Namespace) -> Timings:
    """Of the slowest rank in each round."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_train, (given, port, results), nprocs=given.ranks)
        ranks = list(results.values())
    rounds = {name: zip(*(rank[name] for rank in ranks), strict=True) for name in WRAPPERS}
    return Timings({name: list(map(max, times)) for name, times in rounds.items()})


def make_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.shards", description=__doc__.partition("\n")[0])
    for name, default, what in (("ranks", 2, "processes"), ("threads", 1, "threads of each"),
                                ("tensors", 1000, "parameters"), ("numel", 1000, "elements of each on a rank"),
                                ("rounds", 40, "timed steps")):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default {default})")
    parser.add_argument("--keep-grads", action="store_true", help="zero gradients, which keep their memory")
    return parser


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def main() -> None:
    """Print the table."""
    given = make_parser().parse_args()
    timings = measure(given)
    rows = []
    for name in WRAPPERS:
        ratio = timings.ratio(name, PLAIN)
        verdict = "" if name == PLAIN else "pass" if ratio.median <= BAR else "FAIL"
        rows.append((name, f"{1e3 * timings.step(name).median:.3f}", ratio.text(), verdict))
    console = terminal()
    title = f"{_several(given.tensors, 'tensor')} of {given.numel:,}, Adam keep 0.5, "
    title += f"{_several(given.ranks, 'rank')}, {_several(given.threads, 'thread')}"
    console.print(title, highlight=False)
    console.print(make_table(("step of", "ms", "ratio to plain", f"<= {BAR}"), rows, console.width))


if __name__ == "__main__":
    main()
