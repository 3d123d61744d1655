"""The parser that counts instructions of machine code, on a hand-made kernel, and the table of what it counts."""

import io

import pytest
from rich.console import Console

from bench import gpu_model
from bench.machine_code import cuda_model, sass
from bench.machine_code.hardware import Gpu
from bench.machine_code.kernel import Kernel
from bench.machine_code.variants import VARIANTS

# What a thread moves of a tile in SGD, f32.
ACCESSES = ["LDG.E.128 R4, desc[UR4][R2.64]"] * 12 + ["STG.E.128 desc[UR4][R2.64], R4"] * 8
SLOW_PATH = [
    "BSSY B1, `(.L_x_8)",
    "@!P0 BRA `(.L_x_4)",
    "MOV R4, 0x10",
    "CALL.REL.NOINC `($slow)",
    "BRA `(.L_x_5)",
    ".L_x_4:",
    "MUFU.RSQ R4, R5",
    "FMUL R4, R4, R5",
    ".L_x_5:",
    "BSYNC B1",
    ".L_x_8:",
]
DRAWS = [
    "@!UP0 BRA `(.L_x_2)",
    "IMAD.WIDE.U32 R6, R6, -0x2daee0ad, RZ",
    "LOP3.LUT R6, R7, R8, RZ, 0x3c, !PT",
    ".L_x_2:",
]
SHUFFLE = ["BRA.DIV UR5, `(.L_x_9)", "SHFL.IDX PT, R4, R5, R6, 0x1f", ".L_x_10:"]
PARTED = [".L_x_9:", "WARPSYNC.COLLECTIVE R20, `(.L_x_11)", ".L_x_11:", "SHFL.IDX PT, R4, R5, R6, R7", "BRA `(.L_x_10)"]
INCREMENT, REPEAT = "IADD3 R2, R2, 0x10, RZ", "BRA.U UP1, `(.L_x_1)"
TILE = [".L_x_1:", INCREMENT, *DRAWS, *SHUFFLE, *ACCESSES, *SLOW_PATH, REPEAT]
AROUND = 1 + 1 + 2 + 1  # the increment, the branch around the draws, the shuffle, the branch back
SLOW = 5  # BSSY, the branch taken, MUFU, FMUL, BSYNC
REST = [
    ".L_x_6:", "LDG.E R4, desc[UR4][R2.64]", "STG.E desc[UR4][R2.64], R4", "@P0 BRA `(.L_x_6)", "EXIT",
    "$slow:", "RET.REL.NODEC R4 `(kernel)",
]  # fmt: skip
IDLE = [".L_x_7:", "BRA `(.L_x_7)"]
KERNEL = ["MOV R1, c[0x0][0x28]", "@P0 EXIT", *TILE, *REST, *PARTED, *IDLE]


def disassembly(lines: list[str]) -> str:
    """What nvdisasm would print of a kernel with these instructions and labels."""
    text, address = ['\t.section\t.text.kernel,"ax",@progbits', '\t.sectioninfo\t@"SHI_REGISTERS=8"', "kernel:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/  {line} ;")
            address += 16
    return "\n".join([*text, "\t.section\t.nv.info", "        /*0000*/ \t.byte\t0x04"])


def count(lines: list[str]) -> dict[str, float]:
    """The figures of a hand-made kernel of SGD with momentum, f32: 16 elements a thread and tile."""
    return cuda_model.count(sass.parse(disassembly(lines))["kernel"], "SGD momentum", "f32")


def replaced(old: list[str], new: list[str], within: list[str] = KERNEL) -> list[str]:
    """The kernel with the one run of lines ``old`` replaced."""
    (start,) = (i for i in range(len(within)) if within[i : i + len(old)] == old)
    return [*within[:start], *new, *within[start + len(old) :]]


def test_counts_of_a_hand_made_kernel():
    unmasked = (AROUND + len(ACCESSES) + SLOW) / 16
    assert count(KERNEL) == {
        "masked": unmasked + 2 / 16,
        "unmasked": unmasked,
        "accesses": 20,
        "wide_accesses": 20,
        "local_accesses": 0,
    }


def test_passes_of_a_tile_in_a_loop():
    half = [".L_x_3:", *ACCESSES[6:16], *SLOW_PATH, "@P1 BRA `(.L_x_3)"]
    got = count(replaced([*ACCESSES, *SLOW_PATH], half))
    unmasked = (AROUND + 2 * (len(ACCESSES) // 2 + SLOW + 1)) / 16
    assert (got["masked"], got["unmasked"], got["accesses"]) == (unmasked + 2 / 16, unmasked, 10)


def test_loads_for_the_next_tile_that_a_branch_skips():
    got = count(replaced(ACCESSES, ["@P3 BRA `(.L_x_12)", *ACCESSES[:4], ".L_x_12:", *ACCESSES[4:]]))
    assert got["unmasked"] == count(KERNEL)["unmasked"] + 1 / 16
    assert got["accesses"] == 20


def test_instructions_are_read_as_nvdisasm_prints_them():
    code = sass.parse(disassembly(KERNEL))["kernel"]
    assert len(code) == sum(not line.endswith(":") for line in KERNEL)
    assert [code[i].opcode for i in (0, 1, 2, -1)] == ["MOV", "EXIT", "IADD3", "BRA"]
    assert code[3] == sass.Instruction("BRA", "`(.L_x_2)", True, 6)
    assert code[6] == sass.Instruction("BRA.DIV", "UR5, `(.L_x_9)", True)
    assert sass.loops(code) == [sass.Loop(2, 36), sass.Loop(37, 39)]  # none by the way back of what has parted
    moved = {"LDG.E": 4, "LDG.E.U16": 2, "ST.E.64": 8, "LD.E.128": 16, "LDG.E.S8": 1, "STG.E.ENL2.256": 32}
    moved |= {"LDL.64": 0, "LDS": 0, "LDC.64": 0, "MOV": 0}
    assert {opcode: sass.Instruction(opcode, "", False).access_bytes for opcode in moved} == moved


def test_loop_that_ends_as_on_sm_80():
    # A guarded call to a label leaves the loop, an unguarded branch closes it: one instruction more a pass.
    end = ["@!P1 CALL.REL.NOINC `(.L_x_12)", "BRA `(.L_x_1)", ".L_x_12:"]
    assert count(replaced([REPEAT], end))["masked"] == count(KERNEL)["masked"] + 1 / 16


def test_local_and_narrow_accesses_of_full_chunks_are_seen():
    halves = ["LDG.E.64 R4, desc[UR4][R2.64]"] * 2
    got = count(replaced(ACCESSES, ["LDL R4, [R1]", *halves, *ACCESSES[1:]]))
    assert (got["accesses"], got["wide_accesses"], got["local_accesses"]) == (21, 19, 1)


TILE_AGAIN = [line.replace("L_x_", "L_y_") for line in TILE if line not in SHUFFLE]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([REPEAT], []),  # no loop
        ([REPEAT], [REPEAT, *TILE_AGAIN]),  # two
        (ACCESSES, ACCESSES[1:]),  # not a tile
        (ACCESSES, [*ACCESSES[:-1], "@P3 BRA `(.L_x_12)", ACCESSES[-1], ".L_x_12:"]),  # a store that may be skipped
        ([*ACCESSES, *SLOW_PATH], [".L_x_3:", *ACCESSES[:7], "@P1 BRA `(.L_x_3)"]),  # no number of passes
        (DRAWS, []),  # nothing to skip
        (DRAWS[:1], []),  # draws that cannot be skipped
        (DRAWS[1:2], ["MOV R6, R7"]),  # what is skipped is not Philox
        (DRAWS[2:3], ["LDG.E R4, desc[UR4][R2.64]", *DRAWS[2:3]]),  # and more
        (SHUFFLE[:1], ["BRA `(.L_x_9)"]),  # always elsewhere
        ([INCREMENT], ["@P2 BRA `(.L_x_12)", "MOV R2, R3", ".L_x_12:"]),  # another branch
        (["@!P0 BRA `(.L_x_4)"], []),  # always slow
        (["BSYNC B1"], ["BRX R2"]),
        (["BSYNC B1"], ["@P0 BRA `(.L_x_99)"]),
        (["BSYNC B1"], ["?"]),
    ],
)
def test_unknown_structure_is_refused(old, new):
    with pytest.raises(sass.UnknownStructure):
        count(replaced(old, new))


@pytest.mark.parametrize(
    ("built", "archs"),
    [
        ("8.0 9.0a", [80, 90]),
        ("9.0a+PTX", [90]),
        ("10.0f+PTX", [100]),
        ("12.0+PTX", []),
        ("8.0 9.0 10.0", [80, 90, 100]),
    ],
)
def test_architectures_of_a_family_are_known(built, archs, monkeypatch):
    monkeypatch.setattr(cuda_model.native, "cuda_archs", built.split)
    assert cuda_model.archs() == archs


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_shows_every_figure(width):
    kernels = [
        Kernel(80, rule, dtype, 255, 16, 12, 4, 72, 72, 103.5, 100.25, cuda_model.traffic_bytes(rule, dtype), backend)
        for rule in VARIANTS for dtype in gpu_model.DTYPES for backend in ("cuda", "triton")
    ]  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    gpu_model.print_terminal(console, 80, kernels)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    shown = [line.split() for line in lines if "cuda" in line or "triton" in line]
    assert shown == [" ".join(gpu_model.cells(kernel)).rpartition(", ")[2].split() for kernel in kernels]


def test_traffic_and_model():
    assert cuda_model.traffic_bytes("Adam", "f32") == 28 and cuda_model.traffic_bytes("AMSGrad", "bf16/f32") == 30
    gpu = Gpu("", 100, 1.0, 1000, attainable=900, latency_ns=500, cache_ns=200)
    assert (gpu.memory_ps(28), gpu.issue_ps(64)) == (28.0, 5.0)
