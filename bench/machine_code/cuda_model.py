"""What the machine code of the CUDA kernels says: read out of the native library, without a GPU."""

import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lrtricks_fused.step import native

from . import sass
from .kernel import GPUS, Kernel
from .variants import VARIANTS

ACCESS = 16  # bytes of one access of a full chunk
ROWS = 8  # of a tile: one thread draws once for its lanes of all
PASSES = 4  # of the inner loop over a tile
PHILOX_MULTIPLIER = re.compile(r"-0x2daee0ad|0xd2511f53")
BYTES = {"float": 4, "double": 8, "lrt::BFloat16": 2, "lrt::Half": 2}
DTYPES = {  # of parameters and gradients, of states
    "f32": ("float", "float"),
    "bf16/f32": ("lrt::BFloat16", "float"),
    "bf16": ("lrt::BFloat16", "lrt::BFloat16"),
    "f16/f32": ("lrt::Half", "float"),
    "f16": ("lrt::Half", "lrt::Half"),
    "f64": ("double", "double"),
}


def traffic_bytes(rule: str, dtype: str) -> int:
    """Least bytes per parameter: parameter and states read and written, gradient read."""
    param, state = DTYPES[dtype]
    return 3 * BYTES[param] + 2 * BYTES[state] * VARIANTS[rule].states


def why_not() -> str | None:
    """The reason why there is nothing to read here; None if there is."""
    return sass.missing_tools() or (None if native.cuda_archs() else "the native library is built without CUDA")


def archs() -> list[int]:
    """Those of GPUS that the native library has machine code for, whether built as 9.0, 9.0a or 9.0f."""
    built = [re.fullmatch(r"(\d+)\.(\d)[af]?(?:\+PTX)?", name) for name in native.cuda_archs()]
    numbers = {int(name[1] + name[2]) for name in built if name}
    return [arch for arch in GPUS if arch in numbers and arch < 900]


def _arguments(rule: str, dtype: str) -> str:
    param, state = DTYPES[dtype]
    return f"{VARIANTS[rule].cpp('double' if param == 'double' else 'float')}, {param}, {state}"


@cache
def library(arch: int) -> dict[str, sass.Text]:
    """Every kernel of the native library for one architecture, by its demangled name."""
    if reason := why_not():
        raise RuntimeError(reason)
    texts: dict[str, sass.Text] = {}
    with tempfile.TemporaryDirectory() as folder:
        sass.run_tool("cuobjdump", "-xelf", f"sm_{arch}", str(native.LIBRARY), cwd=folder)
        for cubin in Path(folder).iterdir():
            texts |= sass.read(cubin)
    return dict(zip(sass.run_tool("c++filt", *texts).splitlines(), texts.values(), strict=True))


def count(code: Sequence[sass.Instruction], rule: str, dtype: str) -> dict[str, Any]:
    """What a full chunk executes, as the fields of Kernel; UnknownStructure if the code is not as expected.

    A tile's loop holds the loads of its first row, the draws, which a branch skips, and the loop over pairs of rows,
    which stores a pair and loads the next. Either the branch is inside, or the compiler has made two loops of it. The
    loop of any alignment, which has accesses of single elements, too, is not looked at.
    """
    elements = ACCESS // BYTES[DTYPES[dtype][0]]
    ways, branches = [], 0
    for tile, words in sass.nested(code):
        outside, inner = sass.passes(code, tile), sass.passes(code, words).longest
        sizes = [code[i].access_bytes for i in inner if code[i].access_bytes]
        if ACCESS // elements in sizes:
            continue
        if sum(sizes) != 2 * elements * traffic_bytes(rule, dtype):
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
        "wide_accesses": sizes.count(ACCESS),
        "local_accesses": sum(code[i].is_local for i in executed),
    }


def step_kernel(arch: int, rule: str, dtype: str) -> sass.Text:
    """The rule's kernel in the native library."""
    text = library(arch).get(f"void lrt::cuda::step_kernel<{_arguments(rule, dtype)}>(lrt::cuda::Step)")
    if text is None:
        raise RuntimeError(f"the native library has no kernel of {rule}, {dtype} for sm_{arch}")
    return text


def kernels(arch: int, rule: str, dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[Kernel]:
    """The rule's kernels in the native library, read, in the order of ``dtypes``."""
    found = []
    for dtype in dtypes:
        text = step_kernel(arch, rule, dtype)
        spills = sum(instruction.is_local for instruction in text.code)
        try:
            counted = count(text.code, rule, dtype)
        except sass.UnknownStructure as error:
            raise sass.UnknownStructure(f"{rule}, {dtype}, sm_{arch}: {error}") from None
        found.append(Kernel(arch, rule, dtype, text.registers, text.stack_bytes, spills, **counted,
                            traffic=traffic_bytes(rule, dtype), backend="cuda"))  # fmt: skip
    return found
