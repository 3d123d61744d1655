"""Kernels of a few lines, for the tests of the machine itself: PTX written out, and memory of plain tensors."""

import struct
from collections.abc import Sequence

import torch
from machine import parse
from machine.launch import Machine
from machine.memory import allocation_of

WIDTH = {"pred": "pred", **{f"{kind}{bits}": f"b{bits}" for kind in "bus" for bits in (16, 32, 64)}, "f32": "b32",
         "f64": "b64", "f16": "b16", "bf16": "b16", "u8": "b16", "s8": "b16", "b8": "b16"}  # fmt: skip
FORMATS = {"b16": "H", "b32": "I", "b64": "Q"}
HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"


def machine_with(body: str, pointers: int = 1, head: str = "", attributes: str = "") -> Machine:
    """A machine with the kernel ``k``, whose parameters are pointers; %rd0, %rd1, ... hold them."""
    params = ",\n".join(f".param .u64 k_param_{i}" for i in range(pointers))
    loads = "\n".join(f"ld.param.u64 %rd{i}, [k_param_{i}];" for i in range(pointers))
    text = f"""{HEAD}{head}
.visible .entry k({params})
{attributes}
{{
.reg .pred %p<20>; .reg .b16 %h<20>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<20>; .reg .f64 %fd<20>;
{loads}
{body}
ret;
}}"""
    made = Machine()
    made.load(parse.entries(text))
    return made


def launch(
    machine: Machine, *tensors: torch.Tensor, blocks: int = 1, threads: int = 32, read_only: int = 0, shared: int = 0
) -> None:
    """Runs ``k`` on tensors, of which the last ``read_only`` may not be written."""
    writable = len(tensors) - read_only
    found = [allocation_of(tensor, number < writable) for number, tensor in enumerate(tensors)]
    machine.memory.register([allocation for allocation in found if allocation is not None])
    machine.launch("k", blocks, threads, struct.pack(f"<{len(tensors)}Q", *(t.data_ptr() for t in tensors)), shared)


def evaluate(text: str, types: Sequence[str], given: Sequence[Sequence[int]]) -> list[int]:
    """The bits that an instruction gives for rows of the bits it is given, a thread a row.

    ``text`` has %out and %a, %b, ...; ``types`` are theirs, in this order. A predicate is 0 or 1.
    """
    names = ["%out", *(f"%{letter}" for letter in "abcd")][: len(types)]
    registers = [WIDTH[kind] for kind in types]
    declared = "\n".join(f".reg .{kind} {name};" for kind, name in zip(registers, names, strict=True))
    body = [declared, ".reg .b64 %at; .reg .b32 %t;", "mov.u32 %t, %tid.x;", "mad.wide.u32 %at, %t, 64, %rd0;"]
    for place, (kind, name) in enumerate(zip(registers[1:], names[1:], strict=True), 1):
        wide = "b32" if kind == "pred" else kind
        into = "%r1" if kind == "pred" else name
        body.append(f"ld.global.{wide} {into}, [%at+{8 * place}];")
        body += [f"setp.ne.s32 {name}, %r1, 0;"] if kind == "pred" else []
    body += [f"{text};", *(["selp.b32 %r2, 1, 0, %out;"] if registers[0] == "pred" else [])]
    result, kind = ("%r2", "b32") if registers[0] == "pred" else ("%out", registers[0])
    memory = torch.zeros(32, 8, dtype=torch.int64)
    for number, row in enumerate(given):
        for place, value in enumerate(row, 1):
            memory[number, place] = value - (value >> 63 << 64)
    launch(machine_with("\n".join([*body, f"st.global.{kind} [%at], {result};"])), memory, threads=len(given))
    size = 8 * struct.calcsize(FORMATS[kind])
    return [int(value) & (1 << size) - 1 for value in memory[: len(given), 0]]


def bits(value: float, kind: str = "f32") -> int:
    """Those of a number."""
    code, whole = ("f", "I") if kind == "f32" else ("d", "Q")
    return struct.unpack(f"<{whole}", struct.pack(f"<{code}", value))[0]
