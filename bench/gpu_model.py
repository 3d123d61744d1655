"""What the machine code of the kernels says: ``python -m bench.gpu_model [--backends ...] [--archs ...] [--markdown]``.

Reads step_kernel of each rule, pair of storage types and architecture out of the native library, compiles its Triton
twin ahead of time, and counts what one parameter costs. Needs cuobjdump and nvdisasm (the toolkit's, or those in
triton's wheel), no GPU.
"""

import argparse
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from .machine_code import cuda_model, stored, triton_model
from .machine_code.cuda_model import DTYPES
from .machine_code.kernel import GPUS, Kernel, target
from .machine_code.stored import KINDS
from .machine_code.variants import VARIANTS
from .tables import grouped, make_table, terminal

TITLE = "A model from machine code and public figures; NOT a measurement: no GPU was used"
HEADER = (
    "kernel", "backend", "registers", "spills", "stack B", "128-bit", "B", "instr masked", "unmasked", "ps memory",
    "ps issue",
)  # fmt: skip
SHORT = {"registers": "regs", "unmasked": "no mask"}  # words of HEADER for a terminal
FOOTNOTE = (
    "B (the least traffic), instructions and picoseconds: per parameter of a full chunk, at normal values; slow paths "
    "of square roots and divisions are skipped, other branches take their longer side. Spills: loads and stores of "
    "local memory in the whole kernel. Stack: in parentheses the local accesses that full chunks execute. 128-bit: "
    "of the accesses of full chunks; of a pair of types the wider decides for Triton. Kernels by storage (offload, "
    "split, stoch. and others) are one with CUDA, and of at most so many instructions: the longest way of as many "
    "bytes. ps: if bound by memory, and if bound by issue (masked), both lower bounds: pipes of a lower rate (double, "
    "integer multiplication, conversion, reciprocal) and waiting are not modelled. AMD: SMs are CUs, scalar "
    "instructions, which have their own issue port and serve 64 lanes, are not counted, spilled registers are."
)

DtypeNames = tuple[str, ...]


class Backend(NamedTuple):
    """Where the kernels of a backend come from.

    Attributes:
        why_not: the reason why there is nothing to read here; None if there is.
        archs: the architectures it has kernels for.
        kernels: (architecture, rule, types) -> what was read, in the order of the types.
    """

    why_not: Callable[[], str | None]
    archs: Callable[[], Iterable[int]]
    kernels: Callable[[int, str, DtypeNames], list[Kernel]]


def triton_kernels(arch: int, rule: str, dtypes: DtypeNames = tuple(DTYPES)) -> list[Kernel]:
    """The rule's Triton kernels, compiled for ``arch``, in the order of ``dtypes``; AMD: of pairs of types alone."""
    found = []
    counted = [dtype for dtype in dtypes if triton_model.is_counted(arch, dtype)]
    for dtype, future in [(dtype, triton_model.reading_of(arch, rule, dtype)) for dtype in counted]:
        read = future.result()
        accesses, wide = sum(read.widths.values()), read.widths.get(16, 0)
        size = stored.traffic_bytes(rule, dtype)
        found.append(Kernel(arch, rule, dtype, read.registers, read.stack_bytes, read.spills, read.local_accesses,
                            accesses, wide, read.masked, read.unmasked, size, "triton"))  # fmt: skip
    return found


def cuda_kernels(arch: int, rule: str, dtypes: DtypeNames = tuple(DTYPES)) -> list[Kernel]:
    """The rule's CUDA kernels, those of pairs of types before those by storage."""
    plain, otherwise = (tuple(name for name in dtypes if name in names) for names in (DTYPES, KINDS))
    return [*cuda_model.kernels(arch, rule, plain), *stored.kernels(arch, rule, otherwise)]


BACKENDS = {
    "cuda": Backend(cuda_model.why_not, cuda_model.archs, cuda_kernels),
    "triton": Backend(triton_model.why_not, lambda: GPUS, triton_kernels),
}


def side_by_side(backends: list[str], arch: int, rule: str, dtypes: DtypeNames) -> list[Kernel]:
    """The rows of a rule: of each pair of types those of the backends that have it for this architecture."""
    chosen = [BACKENDS[name] for name in backends]
    rows = [row for backend in chosen if arch in backend.archs() for row in backend.kernels(arch, rule, dtypes)]
    return sorted(rows, key=lambda row: dtypes.index(row.dtype))


def cells(kernel: Kernel) -> tuple[str, ...]:
    """A kernel's figures in the order of HEADER."""
    gpu, local = GPUS[kernel.arch], f" ({kernel.local_accesses})" if kernel.stack_bytes else ""
    return (
        f"{kernel.rule}, {kernel.dtype}",
        kernel.backend,
        str(kernel.registers),
        str(kernel.spills),
        f"{kernel.stack_bytes}{local}",
        f"{kernel.wide_accesses}/{kernel.accesses}",
        str(kernel.traffic),
        f"{kernel.masked:.1f}",
        f"{kernel.unmasked:.1f}",
        f"{gpu.memory_ps(kernel.traffic):.2f}",
        f"{gpu.issue_ps(kernel.masked):.2f}",
    )


def heading(arch: int) -> str:
    """The figures that an architecture's table rests on."""
    gpu = GPUS[arch]
    return (f"{target(arch)}: {gpu.name}, {gpu.sms} SMs, {gpu.lanes} lanes each, {gpu.gigahertz:g} GHz boost, "
            f"{gpu.gigabytes_per_second:g} GB/s")  # fmt: skip


def markdown(arch: int, rows: list[Kernel]) -> str:
    """One architecture's table for the README."""
    lines = [heading(arch), "", "| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * (len(HEADER) - 2)]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in rows]) + "\n"


def print_terminal(console: Console, arch: int, rows: list[Kernel]) -> None:
    """The same for a terminal, the rules one below the other; what spills is yellow."""
    lines: list[tuple[str | Text, ...]] = []
    for row in rows:
        style = "yellow" if row.spills else ""
        lines.append((f"{row.rule}: {row.dtype}", *(Text(cell, style) for cell in cells(row)[1:])))
    shown, ends = grouped(lines)
    console.print(heading(arch), style="bold", highlight=False)
    console.print(make_table([SHORT.get(word, word) for word in HEADER], shown, console.width, ends=ends))


def parse_arguments() -> argparse.Namespace:
    """Command line of the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=TITLE)
    there = [name for name, backend in BACKENDS.items() if not backend.why_not()]
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=there,
        help="cuda triton (default: those that can be read here)",
    )
    parser.add_argument(
        "--archs", nargs="+", type=int, choices=GPUS, default=list(GPUS), help="80 90 100 942 (gfx942; default: all)"
    )
    parser.add_argument(
        "--rules", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="RULE", help=", ".join(VARIANTS)
    )
    names = [*DTYPES, *KINDS]
    parser.add_argument("--dtypes", nargs="+", choices=names, default=names, metavar="DTYPE",
                        help=f"of parameters/states, or how they are stored: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print Markdown for the README")
    return parser.parse_args()


def main() -> None:
    """Compile and print, one table per architecture."""
    arguments = parse_arguments()
    console = terminal()
    console.print(f"[bold]{TITLE}[/]" if not arguments.markdown else f"**{TITLE}**\n", highlight=False,
                  soft_wrap=arguments.markdown)  # fmt: skip
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for arch in progress.track(arguments.archs, description="architectures"):
            rows = []
            for rule in progress.track(arguments.rules, description=target(arch)):
                rows += side_by_side(arguments.backends, arch, rule, tuple(arguments.dtypes))
            if not rows:
                continue
            if arguments.markdown:
                print(markdown(arch, rows))
            else:
                print_terminal(console, arch, rows)
    console.print(FOOTNOTE, style="" if arguments.markdown else "dim", highlight=False, soft_wrap=arguments.markdown)


if __name__ == "__main__":
    main()
