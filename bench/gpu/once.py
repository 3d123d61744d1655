"""Takes six steps, each of another kernel, for a profiler to look at: ``python -m bench.gpu.once [--dry-run]``.

What comes before them (kernels are compiled and loaded, tables uploaded) is outside cudaProfilerStart and -Stop.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from ..candidates import KEEP_PROB
from .candidates import Ours
from .device import Device
from .measure import Settings
from .rows import BIG, Row, low, small
from .work import Work
from .worker import open_device

ROWS = (
    ("native", Row(BIG)),
    ("native", Row(BIG, "AMSGrad")),
    ("native", low(BIG, state_dtype=torch.float32)),
    ("native", low(BIG)),
    ("triton", Row(BIG)),
    ("triton", low(BIG)),
)
WARM_UP = 2


def take(ours: Ours, device: Device) -> None:
    """One step between the profiler's marks."""
    work = Work(ours.row, device.device, device.device)
    step = ours.build(work.params)
    for _ in range(WARM_UP):
        step()
    if not device.measures:
        return
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """All six; 3 after a dry run."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.once", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small and without a profiler")
    dry_run = parser.parse_args(argv).dry_run
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        device = open_device(Settings(dry_run=dry_run))
    except ValueError as error:
        parser.error(str(error))
    for backend, row in ROWS:
        ours = Ours(small(row) if dry_run else row, backend, KEEP_PROB)
        print(f"{row.name}: {ours.name}", flush=True)
        take(ours, device)
    return 3 if dry_run else 0


if __name__ == "__main__":
    sys.exit(main())
