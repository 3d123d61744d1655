"""What the machine code of the kernels says: ``python -m bench.gpu_model [--backends ...] [--archs ...] [--markdown]``.

Reads step_kernel of each rule, pair of storage types and architecture out of the native library, compiles its Triton
twin ahead of time, and counts what one parameter costs. Needs cuobjdump and nvdisasm (the toolkit's, or those in
triton's wheel), no GPU.
"""

import argparse
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lrtricks_fused.step import native

from . import sass, triton_model

TITLE = "A model from the machine code and public figures; NOT a measurement: no GPU was used"
HEADER = (
    "kernel", "backend", "registers", "spills", "stack B", "128-bit", "B", "instr masked", "unmasked", "ps memory",
    "ps issue",
)  # fmt: skip
FOOTNOTE = (
    "B (the least traffic), instructions and picoseconds: per parameter of a full chunk, at normal values; slow paths "
    "of square roots and divisions are skipped, other branches take their longer side. Spills: loads and stores of "
    "local memory in the whole kernel. Stack: in parentheses the local accesses that full chunks execute. 128-bit: "
    "of the accesses of full chunks; of a pair of types the wider decides for Triton. ps: if bound by memory, and if "
    "bound by issue (masked), both lower bounds: pipes of a lower rate (double, integer multiplication, conversion, "
    "reciprocal) and waiting are not modelled. AMD: SMs are CUs, scalar instructions, which have their own issue port "
    "and serve 64 lanes, are not counted, spilled registers are."
)
ROWS = 8  # of a tile: one thread draws once for its lanes of all
PASSES = 4  # of the inner loop over a tile
PHILOX_MULTIPLIER = re.compile(r"-0x2daee0ad|0xd2511f53")


@dataclass(frozen=True)
class Gpu:
    """Public figures of a board: multiprocessors, boost clock, memory bandwidth, lanes that issue per clock."""

    name: str
    sms: int
    gigahertz: float
    gigabytes_per_second: float
    lanes: int = 128  # 4 warps

    def memory_ps(self, size: float) -> float:
        """Picoseconds that moving ``size`` bytes takes."""
        return size / self.gigabytes_per_second * 1e3

    def issue_ps(self, instructions: float) -> float:
        """Picoseconds that issuing ``instructions`` of one thread takes."""
        return instructions / (self.sms * self.lanes * self.gigahertz) * 1e3


GPUS = {
    80: Gpu("A100 SXM 80 GB", 108, 1.41, 2039),
    90: Gpu("H100 SXM", 132, 1.98, 3350),
    100: Gpu("B200", 148, 1.965, 8000),
    942: Gpu("MI300X", 304, 2.1, 5300, lanes=64),
}
RULES = {  # template with its compute type left open, number of states; AdamW runs Adam's kernel
    "Adam": ("Adam<{}, false>", 2),
    "AMSGrad": ("Adam<{}, true>", 3),
    "SGD momentum": ("SGD<{}, true, false>", 1),
    "RMSprop": ("RMSprop<{}, false, false>", 1),
    "RAdam": ("RAdam<{}>", 2),
    "AdaBelief": ("AdaBelief<{}>", 2),
}
BYTES = {"float": 4, "double": 8, "lrt::BFloat16": 2, "lrt::Half": 2}
DTYPES = {  # of parameters and gradients, of states
    "f32": ("float", "float"),
    "bf16/f32": ("lrt::BFloat16", "float"),
    "bf16": ("lrt::BFloat16", "lrt::BFloat16"),
    "f16/f32": ("lrt::Half", "float"),
    "f16": ("lrt::Half", "lrt::Half"),
    "f64": ("double", "double"),
}


@dataclass(frozen=True)
class Kernel:
    """One instantiation of step_kernel, and what its machine code says about a full chunk."""

    arch: int
    rule: str
    dtype: str
    registers: int
    stack_bytes: int
    spills: int  # accesses to local memory in the whole kernel
    local_accesses: int  # local memory, in the instructions that full chunks execute
    accesses: int  # to global memory, in the text of the inner loop
    wide_accesses: int  # those of 128 bits
    masked: float  # instructions per parameter
    unmasked: float
    backend: str = "cuda"

    def cells(self) -> tuple[str, ...]:
        """In the order of HEADER."""
        gpu, size = GPUS[self.arch], traffic_bytes(self.rule, self.dtype)
        local = f" ({self.local_accesses})" if self.stack_bytes else ""
        return (
            f"{self.rule}, {self.dtype}",
            self.backend,
            str(self.registers),
            str(self.spills),
            f"{self.stack_bytes}{local}",
            f"{self.wide_accesses}/{self.accesses}",
            str(size),
            f"{self.masked:.1f}",
            f"{self.unmasked:.1f}",
            f"{gpu.memory_ps(size):.2f}",
            f"{gpu.issue_ps(self.masked):.2f}",
        )


def target(arch: int) -> str:
    """The compilers' name of an architecture."""
    return f"gfx{arch}" if arch > 900 else f"sm_{arch}"


def traffic_bytes(rule: str, dtype: str) -> int:
    """Least bytes per parameter: parameter and states read and written, gradient read."""
    param, state = DTYPES[dtype]
    return 3 * BYTES[param] + 2 * BYTES[state] * RULES[rule][1]


def why_not() -> str | None:
    """The reason why there is nothing to read here; None if there is."""
    return sass.missing_tools() or (None if native.cuda_archs() else "the native library is built without CUDA")


def archs() -> list[int]:
    """Those of GPUS that the native library has machine code for."""
    built = [name.removesuffix("+PTX") for name in native.cuda_archs()]
    return [arch for arch in GPUS if f"{arch // 10}.{arch % 10}" in built and arch < 900]


def _arguments(rule: str, dtype: str) -> str:
    param, state = DTYPES[dtype]
    return f"lrt::{RULES[rule][0].format('double' if param == 'double' else 'float')}, {param}, {state}"


@cache
def library(arch: int) -> dict[str, sass.Text]:
    """Every kernel of the native library for one architecture, by its demangled name."""
    if reason := why_not():
        raise RuntimeError(reason)
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        sass.run_tool("cuobjdump", "-xelf", f"sm_{arch}", str(native.LIBRARY), cwd=folder)
        for cubin in Path(folder).iterdir():
            texts |= sass.read(cubin)
    return dict(zip(sass.run_tool("c++filt", *texts).splitlines(), texts.values(), strict=True))


def count(code: list[sass.Instruction], rule: str, dtype: str) -> dict[str, float]:
    """What a full chunk executes, as the fields of Kernel; UnknownStructure if the code is not as expected.

    A tile's loop holds the draws, which a branch skips, the loop over words, each of two rows, and the store of a
    slope, which another branch skips. Either the first branch is inside, or the compiler has made two loops of it.
    The loops that step lane by lane, moving two elements a word, and those of centralized gradients, which read a mean
    beside every element, are not looked at.
    """
    elements = 16 // BYTES[DTYPES[dtype][0]]
    mean = max(4, BYTES[DTYPES[dtype][0]])
    ways, branches = [], 0
    for tile, words in sass.nested(code):
        outside, inner = sass.passes(code, tile), sass.passes(code, words).longest
        moved = sum(code[i].access_bytes for i in inner)
        if moved in (2 * (traffic_bytes(rule, dtype) + mean), 2 * elements * (traffic_bytes(rule, dtype) + mean)):
            continue
        if moved != 2 * elements * traffic_bytes(rule, dtype):
            raise sass.UnknownStructure(f"the inner loop {words} does not move two rows")
        around = [i for i in outside.branches if not words.head <= i <= words.end]
        branches += sum(not sass.skips_store(code, i) for i in around)
        for way in (outside.longest, outside.shortest):
            ways.append(([i for i in way if not words.head <= i <= words.end], inner))
    costs: dict[bool, list[float]] = {True: [], False: []}
    for once, inner in ways:
        draws = any(PHILOX_MULTIPLIER.search(code[i].operands) for i in once)
        costs[draws].append((len(once) + PASSES * len(inner)) / (ROWS * elements))
    if not costs[True] or not costs[False] or (branches, len(ways)) not in ((1, 2), (0, 4)):
        raise sass.UnknownStructure(f"{branches} branches outside the inner loop, {len(ways)} ways, costs {costs}")
    executed = {i for once, inner in ways for i in (*once, *inner)}
    sizes = [code[i].access_bytes for _, inner in ways[::2] for i in inner if code[i].access_bytes]
    return {
        "masked": max(costs[True]),
        "unmasked": max(costs[False]),
        "accesses": len(sizes),
        "wide_accesses": sizes.count(16),
        "local_accesses": sum(code[i].is_local for i in executed),
    }


def kernels(arch: int, rule: str, dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[Kernel]:
    """The rule's kernels in the native library, read, in the order of ``dtypes``."""
    found = []
    for dtype in dtypes:
        text = library(arch).get(f"void lrt::cuda::step_kernel<{_arguments(rule, dtype)}>(lrt::cuda::Step)")
        if text is None:
            raise RuntimeError(f"the native library has no kernel of {rule}, {dtype} for sm_{arch}")
        spills = sum(instruction.is_local for instruction in text.code)
        try:
            counted = count(text.code, rule, dtype)
        except sass.UnknownStructure as error:
            raise sass.UnknownStructure(f"{rule}, {dtype}, sm_{arch}: {error}") from None
        found.append(Kernel(arch, rule, dtype, text.registers, text.stack_bytes, spills, **counted))
    return found


def triton_kernels(arch: int, rule: str, dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[Kernel]:
    """The rule's Triton kernels, compiled for ``arch``, in the order of ``dtypes``."""
    found = []
    for dtype, future in [(dtype, triton_model.step_reading(arch, rule, dtype)) for dtype in dtypes]:
        read = future.result()
        accesses, wide = sum(read.widths.values()), read.widths.get(16, 0)
        found.append(Kernel(arch, rule, dtype, read.registers, read.stack_bytes, read.spills, read.local_accesses,
                            accesses, wide, read.masked, read.unmasked, "triton"))  # fmt: skip
    return found


BACKENDS = {"cuda": (why_not, archs, kernels), "triton": (triton_model.why_not, lambda: GPUS, triton_kernels)}


def side_by_side(backends: list[str], arch: int, rule: str, dtypes: tuple[str, ...]) -> list[Kernel]:
    """The rows of a rule: of each pair of types those of the backends that have it for this architecture."""
    columns = [BACKENDS[name][2](arch, rule, dtypes) for name in backends if arch in BACKENDS[name][1]()]
    return [row for rows in zip(*columns, strict=True) for row in rows]


def heading(arch: int) -> str:
    """The figures that an architecture's table rests on."""
    gpu = GPUS[arch]
    return (f"{target(arch)}: {gpu.name}, {gpu.sms} SMs, {gpu.lanes} lanes each, {gpu.gigahertz:g} GHz boost, "
            f"{gpu.gigabytes_per_second:g} GB/s")  # fmt: skip


def markdown(arch: int, rows: list[Kernel]) -> str:
    """One architecture's table for the README."""
    lines = [heading(arch), "", "| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * (len(HEADER) - 2)]
    return "\n".join(lines + ["| " + " | ".join(row.cells()) + " |" for row in rows]) + "\n"


def print_terminal(console: Console, arch: int, rows: list[Kernel]) -> None:
    """The same for a terminal."""
    table = Table(*HEADER, title=heading(arch), header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row.cells(), style="yellow" if row.spills else "")
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Command line of the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=TITLE)
    there = [name for name, (why, _, _) in BACKENDS.items() if not why()]
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=there, help="cuda triton")
    parser.add_argument("--archs", nargs="+", type=int, choices=GPUS, default=list(GPUS), help="80 90 100 942 (gfx942)")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE",
                        help=f"of parameters/states: {', '.join(DTYPES)}")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print Markdown for the README")
    return parser.parse_args()


def main() -> None:
    """Compile and print, one table per architecture."""
    arguments = parse_arguments()
    console = Console()
    console.width = max(console.width, 120)  # cut figures would mislead
    console.print(f"[bold]{TITLE}[/]" if not arguments.markdown else f"**{TITLE}**\n", highlight=False, soft_wrap=True)
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
