"""What the machine code of the CUDA kernels says: read out of the native library, without a GPU."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lrtricks_fused.step import native

from . import sass
from .kernel import GPUS, Kernel
from .variants import VARIANTS

ACCESS = 16  # bytes of one access of a full chunk
ELEMENTS = 16  # of a thread in a tile of 512, which a warp steps
PLAIN = "false, false"  # step_kernel's kMapped, kSloped: neither shards, channels_last nor a slope
_UNREPORTED = re.compile(r"(step_kernelILb0ELb1|step_kernelILb1|staged_kernelILb1)E")  # all others, by mangled names
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


def is_reported(name: str) -> bool:
    """Whether reports have the kernel of this mangled name: none of shards, channels_last and slopes."""
    return not _UNREPORTED.search(name)


@contextmanager
def _cubins(arch: int) -> Iterator[list[Path]]:
    if reason := why_not():
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as folder:
        sass.run_tool("cuobjdump", "-xelf", f"sm_{arch}", str(native.LIBRARY), cwd=folder)
        yield [*Path(folder).iterdir()]


@cache
def library(arch: int, wanted: Callable[[str], bool] = is_reported) -> dict[str, sass.Text]:
    """Kernels of the native library for one architecture, those of wanted mangled names, by their demangled ones."""
    with _cubins(arch) as cubins:
        return sass.demangled({name: text for cubin in cubins for name, text in sass.read(cubin, wanted).items()})


@cache
def stacks(arch: int) -> dict[str, int]:
    """Bytes of the stack of every kernel of the native library for one architecture, by its demangled name."""
    with _cubins(arch) as cubins:
        return sass.demangled({name: stack for cubin in cubins for name, (_, stack, _) in sass.usage(cubin).items()})


def tile_loop(code: Sequence[sass.Instruction], dtype: str) -> tuple[sass.Loop, list[sass.Loop]]:
    """The loop over a full chunk's tiles, and those in it; not those of any alignment, which access single elements."""
    single, found = BYTES[DTYPES[dtype][0]], sass.loops(code)
    outermost = [loop for loop in found if not any(other.contains(loop) for other in found)]
    of = {loop: code[loop.head : loop.end + 1] for loop in outermost}
    stores = [loop for loop in outermost if any(it.is_store and it.access_bytes for it in of[loop])]
    full = [loop for loop in stores if single not in {it.access_bytes for it in of[loop]}]
    if len(full) != 1:
        raise sass.UnknownStructure(f"{len(full)} loops that access no single elements, of {outermost}")
    return full[0], [loop for loop in found if full[0].contains(loop)]


def draws(code: Sequence[sass.Instruction], way: sass.Passes) -> set[int]:
    """What the one branch around the draws skips; UnknownStructure if there is another before they end."""
    found = []
    for branch in way.branches:
        over = {i for i in way.longest if branch < i < (code[branch].target or 0)}
        if any(PHILOX_MULTIPLIER.search(code[i].operands) for i in over):
            found.append(over)
    if len(found) != 1 or any(code[i].access_bytes for i in found[0]):
        raise sass.UnknownStructure(f"{len(found)} branches around draws alone")
    if sum(branch < max(found[0]) for branch in way.branches) != 1:
        raise sass.UnknownStructure("another branch before the draws end")
    return found[0]


def count(code: Sequence[sass.Instruction], rule: str, dtype: str) -> dict[str, Any]:
    """What a full chunk executes, as the fields of Kernel; UnknownStructure if the code is not as expected.

    A warp's loop over tiles holds the draws, which a branch skips, and the passes over the tile's rows, unrolled or
    some of them in a loop; a pass may load for the next one, also of the next tile, where there is one. Branches in the
    passes, which skip no store, take their longer side.
    """
    tile, inside = tile_loop(code, dtype)
    if len(inside) > 1:
        raise sass.UnknownStructure(f"more than one loop in the loop over tiles: {inside}")
    outside = sass.passes(code, tile)
    inner = [sass.passes(code, loop) for loop in inside]
    looped = [i for way in inner for i in way.longest]
    once = [i for i in outside.longest if not any(loop.head <= i <= loop.end for loop in inside)]
    moved = [sum(code[i].access_bytes for i in way) for way in (once, looped)]
    rest = ELEMENTS * traffic_bytes(rule, dtype) - moved[0]
    if rest % moved[1] if moved[1] else rest or looped:
        raise sass.UnknownStructure(f"no number of passes moves a tile: {moved} of {rest} bytes")
    times = rest // moved[1] if moved[1] else 0
    skipped = draws(code, outside)
    if any(PHILOX_MULTIPLIER.search(code[i].operands) for i in {*once, *looped} - skipped):
        raise sass.UnknownStructure("draws that no branch skips")
    if any(sass.skips_store(code, i) for way in (outside, *inner) for i in way.branches):
        raise sass.UnknownStructure("a branch around a store")
    sizes = [code[i].access_bytes for i in (*once, *looped) if code[i].access_bytes]
    issued = len(once) + times * len(looped)
    return {
        "masked": issued / ELEMENTS,
        "unmasked": (issued - len(skipped)) / ELEMENTS,
        "accesses": len(sizes),
        "wide_accesses": sizes.count(ACCESS),
        "local_accesses": sum(code[i].is_local for i in (*once, *looped)),
    }


def step_kernel(arch: int, rule: str, dtype: str) -> sass.Text:
    """The rule's kernel in the native library."""
    text = library(arch).get(f"void lrt::cuda::step_kernel<{PLAIN}, {_arguments(rule, dtype)}>(lrt::cuda::Step)")
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
