"""The machine code of the Triton step kernels, as bandwidth.py models it."""

from concurrent.futures import Future
from functools import cache

from . import amdgcn, sass, triton_model


def compile_text(arch: int, rule: str, dtype: str) -> tuple[sass.Text, int | None]:
    """Compiles a step kernel for full chunks; its code, and the threads of a block where the code does not say."""
    reading, code = triton_model._compile_step(arch, rule, dtype, False, False)[:2]
    text = sass.Text(code, reading.registers, reading.stack_bytes, reading.shared_bytes, arch, reading.section)
    return text, None if reading.section else amdgcn.number(reading.text, "max_flat_workgroup_size")


@cache
def step_text(arch: int, rule: str, dtype: str) -> Future[tuple[sass.Text, int | None]]:
    """compile_text in a process of its own; several are at work at a time."""
    return triton_model._pool().submit(compile_text, arch, rule, dtype)
