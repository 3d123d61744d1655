"""No product is contracted with a sum: neither by nvcc and Triton, nor afterwards by ptxas.

The first is what test_library_ptx.py and test_triton_ptx.py show; here is what they would see if it were not so. The
second cannot be executed here, but counted: a contraction leaves a fused instruction in the machine code.
"""

import functools
import re
import shlex
import subprocess
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import native_ptx
import pytest
from helpers import same_bits
from inventory import DTYPES, RICH
from machine import parse
from machine.launch import Machine
from scenes import steps
from test_library_ptx import ADAM, F32, FULL, NEWEST
from triton_ptx import gpu

from bench.machine_code import cuda_model, sass
from lrtricks_fused.step import native

(TARGET,) = NEWEST
SGD = RICH[0]
IN_PTX = re.compile(r"(?:^|\s)(add|sub|mul|fma|div|sqrt|rcp)\.rn\.(f32x2|f32|f64)\s", re.MULTILINE)
# Of a type: what PTX calls it, and in machine code multiplications, additions and the fused instruction.
CODES = {"f32": ("FMUL", "FADD", "FFMA"), "f64": ("DMUL", "DADD", "DFMA")}
STEP = re.compile(r"4cuda11step_kernel")


def is_counted(name):
    """Whether a kernel of this mangled name is: without LRTRICKS_FULL=1 none of shards, channels_last and slopes."""
    return FULL or cuda_model.is_reported(name)


def in_ptx(text, kind):
    """Multiplications, additions and fused instructions of a kernel; and what is made of fused ones, by name."""
    found = Counter()
    for opcode, of in IN_PTX.findall(text):
        if of.removesuffix("x2") == kind:
            found[opcode] += 2 if of.endswith("x2") else 1
    expanded = {name: found[name] for name in ("div", "sqrt", "rcp") if found[name]}
    return found["mul"], found["add"] + found["sub"], found["fma"], expanded


def in_code(code, kind):
    """Multiplications, additions and fused instructions of machine code."""
    found = Counter(instruction.opcode.split(".")[0] for instruction in code)
    return tuple(found[name] + 2 * found[f"{name}2"] for name in CODES[kind])


def assembled(text):
    """The machine code that ptxas makes of a PTX text, by kernel."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text)
        sass.run_tool("ptxas", f"-arch={parse.target(text)}", "-o", str(cubin), str(source))
        return sass.parse(sass.run_tool("nvdisasm", "-c", str(cubin)))


def test_the_driver_is_told_to_contract_nothing():
    assert {" ".join(said.split()[1:]) for said in native_ptx.ptxas_options()} == {"--fmad false"}


def counted():
    """Names and PTX texts."""
    return ((name, text) for name, text in native_ptx.library()[TARGET].items() if is_counted(name))


@pytest.fixture(scope="module")
def code():
    """The machine code of the library's kernels that are counted, for the newest target whose PTX it has, too."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        sass.run_tool("cuobjdump", "-xelf", TARGET, str(native.LIBRARY), cwd=folder)
        for cubin in Path(folder).iterdir():
            found |= sass.read(cubin, is_counted)
    return {name: text.code for name, text in found.items()}


@pytest.mark.parametrize("kind", CODES)
def test_ptxas_contracts_nothing_without_divisions(code, kind):
    seen = 0
    for name, text in counted():
        products, sums, fused, expanded = in_ptx(text, kind)
        if expanded or not products + sums:
            continue
        given = in_code(code[name], kind)
        # A loop that is unrolled repeats what is in it.
        assert given[2] == fused and given[0] >= products and given[1] >= sums, (name, products, sums, fused, given)
        seen += bool(STEP.search(name))
    assert seen >= 3


def head_of(text):
    """What stands before a kernel: version and target."""
    return text[: re.search(r"^\.address_size 64$", text, re.MULTILINE).end()]


@functools.cache
def fused_alone(head, kind, expanded):
    """Fused instructions of a kernel that has nothing but so many divisions, roots and reciprocals."""
    size = int(kind[1:]) // 8
    number, lines = 0, []
    for opcode, count in expanded:
        for _ in range(count):
            a, b = (f"%v{2 * number + 1}", f"%v{2 * number + 2}")
            lines += [f"ld.global.{kind} {x}, [%at+{(2 * number + k) * size}];" for k, x in enumerate((a, b))]
            lines += [f"{opcode}.rn.{kind} {a}, {f'{a}, {b}' if opcode == 'div' else a};"]
            number += 1
    lines += [f"st.global.{kind} [%at+{2 * n * size}], %v{2 * n + 1};" for n in range(number)]
    registers = f".reg .u64 %at; .reg .{kind} %v<{2 * number + 1}>; ld.param.u64 %at, [at];"
    text = "\n".join([head, ".visible .entry alone(.param .u64 at) {", registers, *lines, "ret; }"])
    return in_code(assembled(text)["alone"], kind)[2]


@pytest.mark.parametrize("kind", CODES)
def test_ptxas_fuses_for_divisions_and_roots_alone(code, kind):
    # Each takes so many fused instructions, and their rare ways, which a kernel has once, so many more: as many as
    # without the rest of the kernel, however many products and sums there are in it.
    others = defaultdict(set)
    for name, text in counted():
        products, sums, fused, expanded = in_ptx(text, kind)
        if expanded and STEP.search(name):
            given = in_code(code[name], kind)[2]
            alone = fused_alone(head_of(text), kind, tuple(expanded.items()))
            assert given == fused + alone, (name, fused, given, expanded)
            others[tuple(expanded.items())].add(products + sums)
    assert sum(map(len, others.values())) > len(others) > 1


def test_a_contraction_by_ptxas_would_be_counted():
    name, text = next((name, text) for name, text in native_ptx.library()[TARGET].items()
                      if "step_kernelILb0ELb0ENS_3SGDIfLb1ELb0EEEffE" in name)  # fmt: skip
    products, sums, fused, expanded = in_ptx(text, "f32")
    assert not fused and not expanded
    assert in_code(assembled(text)[name], "f32") == (products, sums, 0)
    given = in_code(assembled(re.sub(r"\b(mul|add|sub)\.rn\.f32", r"\1.f32", text))[name], "f32")
    assert given[2] > 0 and given[0] < products and given[1] < sums


@pytest.mark.parametrize("kind", CODES)
def test_a_contraction_by_ptxas_beside_divisions_would_be_counted(kind):
    real = {"f32": "f", "f64": "d"}[kind]
    name, text = next((name, text) for name, text in native_ptx.library()[TARGET].items()
                      if f"step_kernelILb0ELb0ENS_4AdamI{real}Lb0EEE{real}{real}E" in name)  # fmt: skip
    _, _, fused, expanded = in_ptx(text, kind)
    alone = fused_alone(head_of(text), kind, tuple(expanded.items()))
    assert not fused and in_code(assembled(text)[name], kind)[2] == alone
    given = in_code(assembled(re.sub(rf"\b(mul|add|sub)\.rn\.{kind}", rf"\1.{kind}", text))[name], kind)
    assert given[2] > alone


def contracted_kernel(folder):
    """The text of SGD's kernel (momentum, Nesterov) from nvcc as the library was built, but with contraction."""
    ninja = (native_ptx.OBJECTS / "build.ninja").read_text()
    nvcc, flags = (re.search(rf"^{name} = (.*)$", ninja, re.MULTILINE)[1] for name in ("nvcc", "cuda_flags"))
    kept = [flag for flag in shlex.split(flags) if not flag.startswith("-gencode")]
    assert "-fmad=false" in kept
    kept[kept.index("-fmad=false")] = "-fmad=true"
    source, made = Path(folder, "contracted.cu"), Path(folder, "contracted.ptx")
    kernel = f"step_kernel<{cuda_model.PLAIN}, lrt::SGD<float, true, true>, float, float>"
    source.write_text(
        f'#include "rules/sgd.h"\n#include "cuda/step_kernel.cuh"\n'
        f"template __global__ void lrt::cuda::{kernel}(lrt::cuda::Step);\n"
    )
    command = [nvcc, *kept, f"-arch={TARGET.replace('sm', 'compute')}", "-ptx", source, "-o", made]
    subprocess.run(command, check=True, capture_output=True)
    return parse.entries(made.read_text())


def test_a_contraction_by_nvcc_would_be_seen(on_ptx, tmp_path):
    expected = steps(SGD, F32, "reference")
    device = on_ptx(TARGET)
    built, plain = contracted_kernel(tmp_path), device.machine
    try:
        device.machine = Machine()
        device.machine.load(native_ptx.library()[TARGET] | built)
        with pytest.raises(RuntimeError, match=r"Inexact: without \.rn"):
            steps(SGD, F32, "native")
        device.machine = Machine(contracted=True)
        device.machine.load(native_ptx.library()[TARGET] | built)
        given = steps(SGD, F32, "native")
        assert device.machine.executed["fma"] > 0
        assert sum(not same_bits(a, b) for a, b in zip(given, expected, strict=True)) > len(given) // 3
    finally:
        device.machine = plain


@pytest.mark.parametrize("case", [SGD, ADAM], ids=lambda c: c.name)
def test_a_contraction_by_triton_would_be_seen(case, monkeypatch):
    expected = steps(case, DTYPES[0], "reference")
    driver = gpu(monkeypatch, 90)

    from lrtricks_fused.triton_kernels import instances, launch

    options = instances.options
    for module in (instances, launch):
        monkeypatch.setattr(module, "options", lambda *of, **how: {**options(*of, **how), "enable_fp_fusion": True})
    monkeypatch.setattr(launch, "step_options", launch.step_options.__wrapped__)  # which keeps what options() said
    driver.contracted = True
    given = steps(case, DTYPES[0], "triton")
    assert sum(machine.executed["fma"] for machine in driver.machines.values()) > 0
    assert sum(not same_bits(a, b) for a, b in zip(given, expected, strict=True)) > len(given) // 3
