"""A model of the kernels' bandwidth: ``python -m bench.bandwidth_model [FILE.cubin ...] [--boards ...] [--rules ...]``.

Reads the machine code of the native library's step kernels, of cubins, or of Triton's, compiled ahead of time, and runs
it through a model of warps, scoreboards, pipes and one memory queue. No GPU is needed, and none is used: bench.gpu
measures, this does not.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from .machine_code import bandwidth, cuda_model, sass, triton_model, triton_text
from .machine_code.bandwidth import Kernel, Prediction
from .machine_code.cuda_model import DTYPES
from .machine_code.hardware import BOARDS, CODE
from .machine_code.kernel import target
from .machine_code.stored import KINDS
from .machine_code.variants import VARIANTS
from .tables import grouped, make_table, terminal

TITLE = "A model from machine code and published figures; NOT a measurement: no GPU was used"
HEADER = ("kernel", "backend", "regs", "blocks", "warps", "instr", "issue %", "KiB in flight", "floor us", "share %")
FOOTNOTE = (
    "share: of the attainable bandwidth, in steps of many full chunks at normal values. floor: a block alone, with "
    "idle memory. blocks, warps: resident on a multiprocessor. instr: per parameter, slow paths of square roots and "
    "divisions left out. issue: slots used. in flight: bytes of loads on average, per multiprocessor. What the model "
    "assumes stands in bench/machine_code/hardware.py and warps.py; it is good for ranking, not to the percent."
)
LOW = 0.85  # shares below are shown in yellow


def heading(board: str) -> str:
    """The figures that a board's table rests on."""
    gpu = BOARDS[board]
    needed = gpu.attainable * gpu.latency_ns / gpu.sms / 1024
    return (
        f"{gpu.name} ({target(CODE[board])}): {gpu.sms} SMs, {gpu.gigahertz:g} GHz, {gpu.attainable:g} of "
        f"{gpu.gigabytes_per_second:g} GB/s attainable, {gpu.latency_ns:g} ns: {needed:.0f} KiB in flight"
    )


def cells(row: Prediction) -> tuple[str, ...]:
    """A prediction in the order of HEADER."""
    return (
        f"{row.rule}: {row.dtype}{'' if row.masked else ', no mask'}",
        row.backend,
        str(row.registers),
        str(row.launch.blocks),
        str(row.launch.blocks * row.launch.warps),
        f"{row.instructions:.1f}",
        f"{100 * row.run.issue:.0f}",
        f"{row.run.in_flight / 1024:.1f}",
        f"{row.run.floor_us:.1f}",
        f"{100 * row.run.share:.0f}",
    )


def print_board(console: Console, board: str, rows: list[Prediction]) -> None:
    """One board's table; low shares are yellow."""
    lines: list[tuple[str | Text, ...]] = []
    for row in rows:
        name, *figures = cells(row)
        lines.append((name, *(Text(figure, "yellow" if row.run.share < LOW else "") for figure in figures)))
    shown, ends = grouped(lines)
    console.print(heading(board), style="bold", highlight=False)
    console.print(make_table(HEADER, shown, console.width, ends=ends))


def cuda_kernels(files: list[Path]) -> dict[int, list[Kernel]]:
    """The step kernels of cubins, or of the native library, by architecture."""
    texts: dict[int, dict[str, sass.Text]] = {}
    for file in files:
        for name, text in sass.demangled(sass.read(file, cuda_model.is_reported)).items():
            texts.setdefault(text.arch, {})[name] = text
    if not files:
        texts = {arch: cuda_model.library(arch) for arch in cuda_model.archs()}
    return {arch: list(bandwidth.step_kernels(found)) for arch, found in texts.items()}


def triton_kernels(archs: set[int], rules: list[str], dtypes: list[str]) -> dict[int, list[Kernel]]:
    """The same, compiled by Triton, several at a time; AMD: of pairs of types alone."""
    keys = [(arch, rule, dtype) for arch in sorted(archs) for rule in rules for dtype in dtypes
            if triton_model.is_counted(arch, dtype)]  # fmt: skip
    futures = [triton_text.step_text(*key) for key in keys]
    found: dict[int, list[Kernel]] = {}
    for (arch, rule, dtype), future in zip(keys, futures, strict=True):
        found.setdefault(arch, []).append(Kernel("triton", rule, dtype, *future.result()))
    return found


def chosen(arguments: argparse.Namespace) -> list[tuple[str, Kernel]]:
    """(Board, kernel) of what was asked for, in the order of the boards and rules."""
    found = cuda_kernels(arguments.files) if "cuda" in arguments.backends else {}
    if "triton" in arguments.backends:
        archs = {CODE[board] for board in arguments.boards}
        for arch, kernels in triton_kernels(archs, arguments.rules, arguments.dtypes).items():
            found.setdefault(arch, []).extend(kernels)
    pairs = [(board, kernel) for board in arguments.boards for kernel in found.get(CODE[board], [])
             if kernel.rule in arguments.rules and kernel.dtype in arguments.dtypes]  # fmt: skip
    orders = arguments.boards, arguments.rules, arguments.dtypes
    return sorted(pairs, key=lambda it: [order.index(word) for order, word in
                                         zip(orders, (it[0], it[1].rule, it[1].dtype), strict=True)])  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """Command line of the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.bandwidth_model", description=TITLE)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="cubins (default: the native library)")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=("cuda", "triton"),
        default=["cuda"],
        help="triton compiles, for some seconds a kernel, and alone has MI300X (default: cuda)",
    )
    parser.add_argument("--boards", nargs="+", choices=BOARDS, default=list(BOARDS), help="default: all")
    parser.add_argument(
        "--rules", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="RULE", help=", ".join(VARIANTS)
    )
    names = [*DTYPES, *KINDS]
    parser.add_argument("--dtypes", nargs="+", choices=names, default=names, metavar="DTYPE",
                        help=f"of parameters/states, or how they are stored: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--no-mask", action="store_true", help="keep_prob 1: nothing is drawn (default: 0.5)")
    return parser.parse_args()


def why_not(arguments: argparse.Namespace) -> str | None:
    """The reason why there is nothing to read; None if there is."""
    if "triton" in arguments.backends and (reason := triton_model.why_not()):
        return reason
    return sass.missing_tools() if arguments.files else cuda_model.why_not() if "cuda" in arguments.backends else None


def main() -> None:
    """Run the model and print, one table per board."""
    arguments = parse_arguments()
    if reason := why_not(arguments):
        raise SystemExit(reason)
    console = terminal()
    console.print(f"[bold]{TITLE}[/]", highlight=False)
    rows: dict[str, list[Prediction]] = {}
    unread: list[str] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for board, kernel in progress.track(chosen(arguments), description="kernels"):
            try:
                rows.setdefault(board, []).append(bandwidth.predict(kernel, board, not arguments.no_mask))
            except sass.UnknownStructure as error:
                unread.append(f"{kernel.backend} on {board}: {error}")
    for line in unread:
        console.print(f"not modelled, the way through the code is unknown: {line}", highlight=False)
    if not rows and not unread:
        raise SystemExit("no step kernel of these boards, rules and types")
    for board, found in rows.items():
        print_board(console, board, found)
    console.print(FOOTNOTE, style="dim", highlight=False)


if __name__ == "__main__":
    main()
