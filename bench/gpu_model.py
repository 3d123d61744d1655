"""What the machine code of the CUDA kernels says: ``python -m bench.gpu_model [--archs ...] [--markdown]``.

Reads step_kernel of each rule, pair of storage types and architecture out of the native library, and counts what one
parameter costs. Needs cuobjdump and nvdisasm (the toolkit's, or those in triton's wheel), no GPU.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lrtricks_fused import ops

from . import sass

TOOLS = ("cuobjdump", "nvdisasm")
TITLE = "A model from the machine code and public figures; NOT a measurement: no GPU was used"
HEADER = (
    "kernel", "registers", "spills", "stack B", "128-bit", "B", "instr masked", "unmasked", "ps memory", "ps issue",
)  # fmt: skip
FOOTNOTE = (
    "B (the least traffic), instructions and picoseconds: per parameter of a full chunk, at normal values; slow paths "
    "of square roots and divisions are skipped, other branches take their longer side. Spills: loads and stores of "
    "local memory in the whole kernel. Stack: in parentheses the local accesses that full chunks execute. 128-bit: of "
    "the accesses of full chunks. ps: if bound by memory, and if bound by issue (masked; 128 lanes per SM and clock), "
    "both lower bounds: pipes of a lower rate (double, integer multiplication, conversion, reciprocal) and waiting are "
    "not modelled."
)
ROWS = 8  # of a tile: one thread draws once for its lanes of all
PASSES = 4  # of the inner loop over a tile
PHILOX_MULTIPLIER = re.compile(r"-0x2daee0ad|0xd2511f53")


@dataclass(frozen=True)
class Gpu:
    """Public figures of a board: streaming multiprocessors, boost clock, memory bandwidth."""

    name: str
    sms: int
    gigahertz: float
    gigabytes_per_second: float

    def memory_ps(self, size: float) -> float:
        """Picoseconds that moving ``size`` bytes takes."""
        return size / self.gigabytes_per_second * 1e3

    def issue_ps(self, instructions: float) -> float:
        """Picoseconds that issuing ``instructions`` of one thread takes: 4 warps, so 128 lanes, per SM and clock."""
        return instructions / (self.sms * 128 * self.gigahertz) * 1e3


GPUS = {
    80: Gpu("A100 SXM 80 GB", 108, 1.41, 2039),
    90: Gpu("H100 SXM", 132, 1.98, 3350),
    100: Gpu("B200", 148, 1.965, 8000),
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

    def cells(self) -> tuple[str, ...]:
        """In the order of HEADER."""
        gpu, size = GPUS[self.arch], traffic_bytes(self.rule, self.dtype)
        local = f" ({self.local_accesses})" if self.stack_bytes else ""
        return (
            f"{self.rule}, {self.dtype}",
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


def traffic_bytes(rule: str, dtype: str) -> int:
    """Least bytes per parameter: parameter and states read and written, gradient read."""
    param, state = DTYPES[dtype]
    return 3 * BYTES[param] + 2 * BYTES[state] * RULES[rule][1]


def find_tool(name: str) -> str | None:
    """The toolkit's cuobjdump or nvdisasm, or the one that triton's wheel ships."""
    triton = importlib.util.find_spec("triton")
    places = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"]]
    if triton and triton.origin:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join(places))


def why_not() -> str | None:
    """The reason why there is nothing to read here; None if there is."""
    if missing := [name for name in TOOLS if not find_tool(name)]:
        return f"{', '.join(missing)} not found: the CUDA toolkit and triton's wheel have them"
    return None if ops.cuda_archs() else "the native library is built without CUDA"


def archs() -> list[int]:
    """Those of GPUS that the native library has machine code for."""
    built = [name.removesuffix("+PTX") for name in ops.cuda_archs()]
    return [arch for arch in GPUS if f"{arch // 10}.{arch % 10}" in built]


def _arguments(rule: str, dtype: str) -> str:
    param, state = DTYPES[dtype]
    return f"lrt::{RULES[rule][0].format('double' if param == 'double' else 'float')}, {param}, {state}"


def _run(*command: str, cwd: str | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done


@dataclass(frozen=True)
class Text:
    """A function's instructions and what ptxas gave it."""

    code: list[sass.Instruction]
    registers: int
    stack_bytes: int


def _resources(listing: str) -> dict[str, tuple[int, int]]:
    """Registers and stack bytes of each function, from what ``cuobjdump -res-usage`` prints."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", listing)
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


@cache
def library(arch: int) -> dict[str, Text]:
    """Every kernel of the native library for one architecture, by its demangled name."""
    if reason := why_not():
        raise RuntimeError(reason)
    cuobjdump, nvdisasm = map(find_tool, TOOLS)
    functions, resources = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        _run(cuobjdump, "-xelf", f"sm_{arch}", str(Path(ops.__file__).with_name("_native.so")), cwd=folder)
        for cubin in map(str, Path(folder).iterdir()):
            functions |= sass.parse(_run(nvdisasm, "-c", cubin).stdout)
            resources |= _resources(_run(cuobjdump, "-res-usage", cubin).stdout)
    demangled = _run("c++filt", *functions).stdout.splitlines()
    return {
        name: Text(code, *resources[mangled])
        for name, (mangled, code) in zip(demangled, functions.items(), strict=True)
    }


def count(code: list[sass.Instruction], rule: str, dtype: str) -> dict[str, float]:
    """What a full chunk executes, as the fields of Kernel; UnknownStructure if the code is not as expected.

    A tile's loop holds the draws, which a branch skips, and the loop over words, each of two rows. Either that branch
    is inside, or the compiler has made two loops of it.
    """
    elements = 16 // BYTES[DTYPES[dtype][0]]
    ways, branches = [], 0
    for tile, words in sass.nested(code):
        outside, inner = sass.passes(code, tile), sass.passes(code, words).longest
        if sum(code[i].access_bytes for i in inner) != 2 * elements * traffic_bytes(rule, dtype):
            raise sass.UnknownStructure(f"the inner loop {words} does not move two rows")
        branches += sum(not words.head <= i <= words.end for i in outside.branches)
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


def heading(arch: int) -> str:
    """The figures that an architecture's table rests on."""
    gpu = GPUS[arch]
    return (f"sm_{arch}: {gpu.name}, {gpu.sms} SMs, 128 lanes each, {gpu.gigahertz:g} GHz boost, "
            f"{gpu.gigabytes_per_second:g} GB/s")  # fmt: skip


def markdown(arch: int, rows: list[Kernel]) -> str:
    """One architecture's table for the README."""
    lines = [heading(arch), "", "| " + " | ".join(HEADER) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row.cells()) + " |" for row in rows]) + "\n"


def print_terminal(console: Console, arch: int, rows: list[Kernel]) -> None:
    """The same for a terminal."""
    table = Table(*HEADER, title=heading(arch), header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row.cells(), style="yellow" if row.spills else "")
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Command line of the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=TITLE)
    parser.add_argument("--archs", nargs="+", type=int, choices=GPUS, default=archs(), help="80 90 100")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE",
                        help=f"of parameters/states: {', '.join(DTYPES)}")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print Markdown for the README")
    return parser.parse_args()


def main() -> None:
    """Compile and print, one table per architecture."""
    arguments = parse_arguments()
    console = Console()
    console.width = max(console.width, 110)  # cut figures would mislead
    console.print(f"[bold]{TITLE}[/]" if not arguments.markdown else f"**{TITLE}**\n", highlight=False, soft_wrap=True)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for arch in progress.track(arguments.archs, description="architectures"):
            rows = []
            for rule in progress.track(arguments.rules, description=f"sm_{arch}"):
                rows += kernels(arch, rule, tuple(arguments.dtypes))
            if arguments.markdown:
                print(markdown(arch, rows))
            else:
                print_terminal(console, arch, rows)
    console.print(FOOTNOTE, style="" if arguments.markdown else "dim", highlight=False, soft_wrap=arguments.markdown)


if __name__ == "__main__":
    main()
