"""Bytes that a step needs beyond parameters, gradients and states: growth of the peak resident set in a child process.

``python -m bench.memory NAME`` is that child; it prints the bytes.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

from . import candidates
from .workloads import BIG

CANDIDATES = {
    "ours": candidates.ours("Adam"),
    "torch fused": candidates.torch_optim("Adam", "fused"),
    "torch foreach": candidates.torch_optim("Adam", "foreach"),
    "paper recipe": candidates.recipe(),
}


def extra_bytes(name: str) -> int:
    """Peak growth during steps of a candidate on 16M fp32 parameters (Adam), measured in a fresh process."""
    command = [sys.executable, "-m", "bench.memory", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _status_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, f"/proc/self/status has no {key}"
    return int(match[1]) * 1024


def measure(name: str) -> int:
    """The same in this process (Linux)."""
    torch.set_num_threads(2)
    step = CANDIDATES[name].build(BIG.parameters())
    for _ in range(3):
        step()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from the present size
    before = _status_bytes("VmRSS")
    for _ in range(5):
        step()
    return max(_status_bytes("VmHWM") - before, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=CANDIDATES)
    print(measure(parser.parse_args().name))
