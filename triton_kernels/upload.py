"""Words from the host into device memory in stream order, in a captured graph, too; twin of ``csrc/cuda/upload.cu``."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .doubles import HALF_BASE
from .instances import compiler, words_constexprs

WORDS = 480  # of one launch: with the rest below the 4 KB that arguments may take
PROGRAM_WORDS = 32  # of one program on NVIDIA's GPUs: its instructions, a few for each word, come from memory first
_PROGRAM_WORDS = tl.constexpr(PROGRAM_WORDS)
LARGEST_WORD = 2**61  # words are smaller: twice one, and HALF_BASE, is an int64
_BASE = tl.constexpr(HALF_BASE)


def in_odd_numbers(words: list[int]) -> tuple[int, ...]:
    """Words for a tuple of WORDS, one number each. See doubles.py, [note: Numbers in a tuple].

    Raises:
        ValueError: a word is negative, or LARGEST_WORD or more.
    """
    if words and not (min(words) >= 0 and max(words) < LARGEST_WORD):
        raise ValueError(f"Invalid words from {min(words)} to {max(words)}: must be in [0, {LARGEST_WORD})")
    return (*(HALF_BASE + 2 * word for word in words), *(HALF_BASE,) * (WORDS - len(words)))


@triton.jit(do_not_specialize=["target", "pitch", "count", "own"])
def write_words(target, pitch: tl.int64, count: tl.int64, own: tl.int64, words, SHARED: tl.constexpr):
    """Words that travel as arguments, by in_odd_numbers: a graph that captures the launch captures them.

    ``own``: PROGRAM_WORDS, which the compiler must not know: it would make a table of the places to jump to.
    """
    if SHARED:
        begin = tl.program_id(0) * own
        for first in tl.static_range(0, len(words), _PROGRAM_WORDS):
            if (begin <= first) & (first < begin + own):
                for k in tl.static_range(first, first + _PROGRAM_WORDS):
                    tl.store(target + k * pitch, (words[k] - _BASE) >> 1, k < count)
    else:
        for k in tl.static_range(len(words)):
            tl.store(target + k * pitch, (words[k] - _BASE) >> 1, k < count)


def _launch(target: Tensor, pitch: int, count: int, words: tuple[int, ...]) -> None:
    constexprs = words_constexprs(compiler())
    programs = max(1, -(-count // PROGRAM_WORDS)) if constexprs["SHARED"] else 1
    write_words[(programs,)](target, pitch, count, PROGRAM_WORDS, words, **constexprs, num_warps=1)


@functools.cache
def _load(device: torch.device) -> None:
    """Compiles and loads write_words, which a capture forbids, by a launch that writes nothing."""
    target = torch.empty(1, dtype=torch.int64, device=device)
    _launch(target, 1, 0, in_odd_numbers([]))


def upload(target: Tensor, words: Tensor) -> None:
    """Copies int64 words from the CPU into ``target`` on the current device, without waiting for the device.

    Args:
        target: int64; in one dimension of any stride, as a column of a table is, else contiguous.
        words: of its shape, on the CPU.

    Raises:
        ValueError: a graph is being captured, and a word is not in [0, LARGEST_WORD).
    """
    if target.is_cpu:
        target.copy_(words)
    elif not torch.cuda.is_current_stream_capturing():
        _load(target.device)
        target.copy_(words.contiguous().pin_memory(), non_blocking=True)  # a strided one would be copied unpinned
    else:  # a copy would read host memory at every replay
        flat, column = words.flatten().tolist(), target if target.dim() == 1 else target.view(-1)
        parts = [(column[first:], flat[first : first + WORDS]) for first in range(0, len(flat), WORDS)]
        arguments = [(part, column.stride(0), len(own), in_odd_numbers(own)) for part, own in parts]  # all checked
        for given in arguments:
            _launch(*given)
