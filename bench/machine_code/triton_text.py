"""The machine code of the Triton step kernels, as bandwidth.py models it."""

from concurrent.futures import Future
from functools import cache

from . import amdgcn, sass, triton_model
from .triton_ways import Shape

Text = tuple[sass.Text, int | None, Shape]


def compile_text(arch: int, rule: str, dtype: str) -> Text:
    """Compiles a step kernel: its code, the threads of a block where the code does not say, a full chunk's layout."""
    reading, code, layout = triton_model._compile_step(arch, rule, dtype, False, False)
    text = sass.Text(code, reading.registers, reading.stack_bytes, reading.shared_bytes, arch, reading.section)
    threads = None if reading.section else amdgcn.number(reading.text, "max_flat_workgroup_size")
    return text, threads, triton_model.shape_of(arch, rule, dtype, layout)


@cache
def step_text(arch: int, rule: str, dtype: str) -> Future[Text]:
    """compile_text in a process of its own; several are at work at a time."""
    return triton_model._pool().submit(compile_text, arch, rule, dtype)
