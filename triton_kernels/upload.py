"""Words from the host into device memory in stream order, in a captured graph, too; twin of ``csrc/cuda/upload.cu``."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 16  # of one launch


@triton.jit(do_not_specialize=["first", "count", *(f"w{k}" for k in range(WORDS))])
def write_words(
    target, first: tl.int64, count: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64, w6: tl.int64, w7: tl.int64,
    w8: tl.int64, w9: tl.int64, w10: tl.int64, w11: tl.int64, w12: tl.int64, w13: tl.int64, w14: tl.int64,
    w15: tl.int64,
):  # fmt: skip
    """Words that travel as arguments: a graph that captures the launch captures them."""
    words = (w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15)
    for k in tl.static_range(16):
        if k < count:
            tl.store(target + first + k, words[k])


@functools.cache
def _load(device: torch.device) -> None:
    """Compiles and loads write_words, which a capture forbids, by a launch that writes nothing."""
    target = torch.empty(1, dtype=torch.int64, device=device)
    write_words[(1,)](target, 0, 0, *[0] * WORDS, num_warps=1)


def upload(target: Tensor, words: Tensor) -> None:
    """Copies int64 words from the CPU into ``target`` on the current device, without waiting for the device."""
    if target.is_cpu:
        target.copy_(words)
    elif not torch.cuda.is_current_stream_capturing():
        _load(target.device)
        target.copy_(words.pin_memory(), non_blocking=True)
    else:  # a copy would read host memory at every replay
        flat = words.flatten().tolist()
        for first in range(0, len(flat), WORDS):
            part = flat[first : first + WORDS]
            write_words[(1,)](target, first, len(part), *part, *[0] * (WORDS - len(part)), num_warps=1)
