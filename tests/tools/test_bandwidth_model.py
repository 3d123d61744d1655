"""The model of bandwidth: against closed forms and published curves; what it decodes; the way it finds in a kernel."""

import dataclasses
import statistics
from types import MappingProxyType

import pytest

from bench.machine_code import amdgcn, elf, sass
from bench.machine_code.hardware import BOARDS, GRANULE_BYTES, LAUNCH_CYCLES, SCHEDULERS, Gpu
from bench.machine_code.issue import operations, pipe
from bench.machine_code.scheduling import decode
from bench.machine_code.trace import Work, trace
from bench.machine_code.warps import Launch, Op, occupancy, simulate

PLAIN = Gpu("", 1, 1.0, 200, 100, latency_ns=1000, cache_ns=200, pipes=MappingProxyType({"lsu": 32, "slow": 4}))
RATE = PLAIN.attainable / PLAIN.gigahertz / PLAIN.sms  # bytes per cycle
SIZE = GRANULE_BYTES // PLAIN.warp  # bytes of a lane, so that an access is a granule
TRIP = [Op(1, write=0, size=SIZE), Op(1, waits=((0, 0),))]  # a load, and what waits for it
TRIPS = 400


def trips(count: int) -> list[Op]:
    return TRIP * count


def closed_queue(customers: int, think: float, service: float) -> float:
    """Customers per cycle of a closed M/M/1 queue with a delay, by mean value analysis (Reiser and Lavenberg 1980)."""
    length = rate = 0.0
    for number in range(1, customers + 1):
        time = service * (1 + length)
        rate = number / (think + time)
        length = rate * time
    return rate


def test_one_load_in_flight_is_bound_by_latency():
    run = simulate(PLAIN, Launch(1, 1), trips(TRIPS), TRIPS * GRANULE_BYTES)
    trip = PLAIN.latency_ns + GRANULE_BYTES / RATE + 1  # and the cycle of what waited
    expected = TRIPS * GRANULE_BYTES / (LAUNCH_CYCLES + TRIPS * trip) / RATE
    assert run.share == pytest.approx(expected, rel=0.002)  # the mean of 2,400 random times of service, 1 % of a trip
    assert run.in_flight == pytest.approx(GRANULE_BYTES, rel=0.01)  # all but the launches
    assert run.floor_us == pytest.approx(TRIPS * (PLAIN.latency_ns + 1) / PLAIN.gigahertz / 1e3, rel=0.001)


@pytest.mark.parametrize("customers", [4, 32, 64, 100, 200])
def test_the_queue_is_the_closed_form(customers):
    # 100 bytes a cycle and a latency of 1,000 cycles: Little's law asks for 98 granules.
    run = simulate(PLAIN, Launch(1, customers), trips(TRIPS), customers * TRIPS * GRANULE_BYTES, waves=3)
    service = GRANULE_BYTES / RATE
    expected = closed_queue(customers, PLAIN.latency_ns + 1 + LAUNCH_CYCLES / TRIPS, service) * service
    assert run.share == pytest.approx(expected, rel=0.03)  # some thousand random times; a block's last warps are alone


def test_enough_bytes_in_flight_reach_the_attainable_bandwidth():
    ops = [*[Op(1, write=0, size=SIZE)] * 16, Op(1, waits=((0, 0),))] * 50
    run = simulate(PLAIN, Launch(4, 8), ops, 8 * 16 * 50 * GRANULE_BYTES)
    assert run.share == pytest.approx(1, abs=0.02)


def test_issue_slots_and_pipes_bound_what_memory_does_not():
    count, warps = 2000, 8
    per_scheduler = count * warps / SCHEDULERS
    for name, cycles in (("", 1), ("lsu", SCHEDULERS), ("slow", SCHEDULERS * PLAIN.warp / 4)):
        run = simulate(PLAIN, Launch(1, warps), [Op(1, pipe=name)] * count, 0)
        assert run.floor_us == pytest.approx(per_scheduler * cycles / 1e3, rel=0.01)
        assert run.issue == pytest.approx(1 / cycles, rel=0.2)  # between launches none are used


def test_stalls_and_scoreboards_hold_a_warp_back():
    def cycles(*ops):
        return simulate(PLAIN, Launch(1, 1), ops, 0).floor_us * 1e3

    assert cycles(Op(7), Op(5), Op(1)) == 12
    load, nothing = Op(2, write=3, cached=True), Op(1)
    assert cycles(load, nothing, Op(1, waits=((3, 0),))) == PLAIN.cache_ns
    assert cycles(load, load, Op(1, waits=((3, 1),))) == PLAIN.cache_ns  # the later one may still be out
    assert cycles(load, load, Op(1, waits=((3, 0),))) == PLAIN.cache_ns + 2
    assert cycles(load, Op(1, waits=((2, 0),))) == 2  # another scoreboard


@pytest.mark.parametrize(
    ("board", "registers", "threads", "shared", "blocks"),
    [  # as the CUDA guide's calculator has them: 65,536 registers, handed out by 256 to a warp
        ("H100", 128, 128, 0, 4), ("H100", 129, 128, 0, 3), ("H100", 168, 128, 0, 3), ("H100", 255, 128, 0, 2),
        ("H100", 128, 256, 0, 2), ("H100", 32, 128, 0, 16), ("H100", 16, 32, 0, 32), ("RTX4090", 32, 128, 0, 12),
        ("A100", 16, 128, 40 << 10, 4), ("H100", 16, 128, 100 << 10, 2),
    ],
)  # fmt: skip
def test_occupancy(board, registers, threads, shared, blocks):
    assert occupancy(BOARDS[board], registers, threads, shared) == Launch(blocks, threads // 32)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1024 threads of 255 registers"):
        occupancy(BOARDS["H100"], 255, 1024)


# Gigabytes per second by threads of each of two blocks per multiprocessor, measured by github.com/te42kyfo/gpu-benches:
# a thread reads, or scales, or adds one double, and ends. They hold the model, they were not fitted to the percent.
CURVES = {
    ("A100", "read"): {32: 85, 128: 325, 512: 1122}, ("A100", "scale"): {32: 157, 128: 581, 512: 1577},
    ("A100", "triad"): {32: 221, 128: 799, 512: 1659}, ("H100 PCIe", "read"): {32: 96, 128: 368, 512: 1261},
    ("H100 PCIe", "scale"): {32: 183, 128: 607, 512: 1583}, ("H100 PCIe", "triad"): {32: 254, 128: 821, 512: 1675},
    ("H200", "read"): {32: 123, 128: 485, 512: 1707}, ("H200", "scale"): {32: 240, 128: 852, 512: 2263},
    ("H200", "triad"): {32: 334, 128: 1129, 512: 2919},
}  # fmt: skip
PCIE = dataclasses.replace(BOARDS["H100"], sms=114, gigahertz=1.755, attainable=1760, latency_ns=370, cache_ns=150)
STREAMS = {"read": (1, 0), "scale": (1, 1), "triad": (2, 1)}  # loads, stores


def stream(loads: int, stores: int) -> list[Op]:
    """What the compiler makes of such a kernel: an index, its check, addresses, loads, a product, a store."""
    begin = [Op(2, pipe="lsu", write=0), Op(2, pipe="lsu", write=1), Op(4, pipe="alu", waits=((0, 0), (1, 0))),
             Op(6, pipe="alu"), Op(2), Op(2, pipe="lsu", write=2), Op(4, pipe="alu", waits=((2, 0),))]  # fmt: skip
    load, store = Op(2, pipe="lsu", write=3, size=8), Op(2, pipe="lsu", read=4, size=8, store=True)
    return [*begin, *[load] * loads, Op(10, pipe="fp64", waits=((3, 0),)), *[store] * stores, Op(5)]


def test_published_curves():
    ratios = []
    for (board, kernel), curve in CURVES.items():
        gpu = PCIE if board == "H100 PCIe" else BOARDS[board]
        for threads, seen in curve.items():
            size = threads * 8 * sum(STREAMS[kernel])
            run = simulate(gpu, Launch(2, threads // 32), stream(*STREAMS[kernel]), size, waves=40)
            ratios.append(run.share * gpu.attainable / seen)
    # The model's memory does not turn between reads and writes, as the H200's must: there it is up to 30 % above.
    assert min(ratios) > 0.75 and max(ratios) < 1.35, ratios
    assert statistics.median(ratios) == pytest.approx(1, abs=0.1), ratios


def test_scheduling_bits():
    # As nvdisasm printed them of a kernel for sm_90: LDC and LDG set the scoreboard that their user waits for.
    code = [
        ("LDC.64", 0x000E220000000A00), ("ULDC.64", 0x000FE40000000A00), ("LDG.E.U16", 0x001EA4000C1E1500),
        ("PRMT", 0x004FC800000000FF), ("ISETP.NE.AND", 0x000FDA0003F05270), ("STG.E.128", 0x0001E2000C101D08),
    ]  # fmt: skip
    bits = [decode(encoding, sass.Instruction(opcode, "", False)) for opcode, encoding in code]
    assert [it.stall for it in bits] == [1, 2, 2, 4, 13, 1]
    assert [it.write for it in bits] == [0, None, 2, None, None, None]
    assert [it.read for it in bits] == [None, None, None, None, None, 0]
    assert [it.waits for it in bits] == [(), (), ((0, 0),), ((2, 0),), (), ()]
    counted = decode(0x000FE40000000A00, sass.Instruction("DEPBAR.LE", "SB3, 0x2", False))
    assert counted.waits == ((3, 2),)


WAITING = [
    "MOV R1, c[0x0][0x28]",
    "@P0 EXIT",
    ".L_1:",
    "IMAD.WIDE.U32 R6, R6, -0x2daee0ad, RZ",
    ".L_2:",
    *["LDG.E.128 R4, desc[UR4][R2.64]"] * 3,
    *["STG.E.128 desc[UR4][R2.64], R4"] * 2,
    "@P1 BRA `(.L_2)",
    "@P2 BRA `(.L_1)",
    "@P4 EXIT",
    ".L_3:",
    *["IMAD.WIDE.U32 R6, R6, -0x2daee0ad, RZ"] * 7,
    "LDG.E R4, desc[UR4][R2.64]",
    "STG.E desc[UR4][R2.64], R4",
    "@P3 BRA `(.L_3)",
    "EXIT",
]  # a loop over columns, one over rows in it, and one of scalar accesses for what is left


def code_of(lines: list[str]) -> list[sass.Instruction]:
    text = ['\t.section\t.text.kernel,"ax",@progbits']
    for number, line in enumerate(lines):
        text.append(line if line.endswith(":") else f"        /*{16 * number:04x}*/  {line} ;")
    return sass.parse("\n".join(text))["kernel"]


def test_loops_run_until_the_chunk_is_stored():
    code = code_of(WAITING)
    way = trace(code, Work(loaded=8 * 3 * 16, stored=8 * 2 * 16, wide=16, masked=True, columns=2))
    row, head = [3, 4, 5, 6, 7, 8], [0, 1]
    column = [2, *row * 4, 9]
    assert way == [*head, *column, *column, 10]


AHEAD = [
    "CALL.REL.NOINC `($division)",  # no way around it
    "LDG.E.128 R4, desc[UR4][R2.64]",
    ".L_1:",
    *["IMAD.WIDE.U32 R6, R6, -0x2daee0ad, RZ"] * 7,  # one call of Philox a pass
    "@P4 BRA `(.L_1)",
    ".L_2:",
    "@P5 BRA `(.L_3)",
    "LDG.E.128 R8, desc[UR4][R2.64]",  # for the next pass
    ".L_3:",
    "STG.E.128 desc[UR4][R2.64], R4",
    "@!P6 EXIT",
    "BRA `(.L_2)",
    "EXIT",
]


def test_draws_in_a_loop_and_a_last_pass_that_loads_nothing():
    code = code_of(AHEAD)
    way = trace(code, Work(loaded=8 * 16, stored=8 * 16, wide=16, masked=True, calls=4))
    draw = [*range(2, 10)]
    branch, load, store, leave, again = range(10, 15)
    assert way == [0, 1, *draw * 4, *[branch, load, store, leave, again] * 7, branch, store, leave]


def test_a_last_pass_whose_loads_have_a_predicate():
    start = AHEAD.index("@P5 BRA `(.L_3)")
    code = code_of([*AHEAD[:start], "@!P5 LDG.E.128 R8, desc[UR4][R2.64]", *AHEAD[start + 3 :]])
    way = trace(code, Work(loaded=8 * 16, stored=8 * 16, wide=16, masked=True, calls=4))
    load, store, leave, again = range(10, 14)
    assert way == [0, 1, *[*range(2, 10)] * 4, *[load, store, leave, again] * 7, store, leave]


DRAW = ["IMAD.WIDE.U32 R6, R6, -0x2daee0ad, RZ"] * 7


def test_loads_ahead_from_one_tile_to_the_next():
    code = code_of([
        "LDG.E.128 R4, desc[UR4][R2.64]", ".L_1:", *DRAW, ".L_2:", "@!P5 LDG.E.128 R8, desc[UR4][R2.64]",
        "STG.E.128 desc[UR4][R2.64], R4", "@P1 BRA `(.L_2)", "@P2 BRA `(.L_1)", "EXIT",
    ])  # fmt: skip
    way = trace(code, Work(loaded=8 * 16, stored=8 * 16, wide=16, masked=True, columns=2))
    draw, (load, store, again, next_tile, leave) = [*range(1, 8)], range(8, 13)
    row = [load, store, again]
    assert way == [0, *draw, *row * 4, next_tile, *draw, *row * 3, store, again, next_tile, leave]


def test_a_loop_for_any_address_is_not_taken_for_that_of_full_chunks():
    move = ["LDG.E.128 R4, desc[UR4][R2.64]", "STG.E.128 desc[UR4][R2.64], R4"]
    code = code_of([
        "@P0 BRA `(.L_2)", ".L_1:", *DRAW, *move, *["MOV R1, R2"] * 5, "@P1 BRA `(.L_1)", "EXIT",
        ".L_2:", *DRAW, "@P3 LDG.E R4, desc[UR4][R2.64]", *move, "@P1 BRA `(.L_2)", "EXIT",
    ])  # fmt: skip
    way = trace(code, Work(loaded=4 * 16, stored=4 * 16, wide=16, masked=True))
    assert way == [0, *[*range(1, 16)] * 4, 16]


@pytest.mark.parametrize(
    "changes",
    [{"loaded": 8 * 4 * 16}, {"stored": 8 * 2 * 16 + 16}, {"masked": False}, {"wide": 32}],
)
def test_a_trace_that_does_not_do_the_work_is_refused(changes):
    work = Work(**{"loaded": 8 * 3 * 16, "stored": 8 * 2 * 16, "wide": 16, "masked": True, "columns": 2, **changes})
    with pytest.raises(sass.UnknownStructure, match="no way loads"):
        trace(code_of(WAITING), work)


@pytest.mark.parametrize(
    ("opcode", "name"),
    [("LDG.E.128", "lsu"), ("STG.E", "lsu"), ("S2R", "lsu"), ("S2UR", ""), ("LDC.64", "lsu"), ("MUFU.RCP", "xu"),
     ("F2F.F64.F32", "xu"), ("F2FP.BF16.F32.PACK_AB", "alu"), ("FADD", "fma"), ("FFMA.FTZ", "fma"), ("FSETP.GT", "alu"),
     ("FMNMX", "alu"), ("HFMA2.MMA", "fma"), ("IMAD.WIDE.U32", "fmaheavy"), ("IMAD.MOV", "fmaheavy"), ("IADD3", "alu"),
     ("LOP3.LUT", "alu"), ("DADD", "fp64"), ("DEPBAR.LE", ""), ("ULOP3.LUT", ""), ("BRA", ""), ("BSYNC", ""),
     ("EXIT", ""), ("WARPSYNC", ""), ("CALL.REL.NOINC", "")],
)  # fmt: skip
def test_pipes(opcode, name):
    assert pipe(opcode) == name


def test_counters_of_gcn():
    code = [
        amdgcn.AmdInstruction("s_load_dwordx2", "s[0:1], s[2:3], 0x0", False),
        amdgcn.AmdInstruction("s_waitcnt", "lgkmcnt(0)", False),
        amdgcn.AmdInstruction("global_load_dwordx4", "v[0:3], v[4:5], off", False),
        amdgcn.AmdInstruction("s_waitcnt", "vmcnt(2) lgkmcnt(1)", False),
        amdgcn.AmdInstruction("v_rcp_f32_e32", "v0, v1", False),
        amdgcn.AmdInstruction("global_store_short", "v4, v0, off", False),
    ]
    ops = operations(sass.Text(code, 8, 0, 0, 942, None), range(len(code)), wide=8)
    assert [op.waits for op in ops] == [(), ((1, 0),), (), ((0, 2), (1, 1)), *[()] * 5]
    assert [op.write for op in ops] == [1, None, 0, *[None] * 5, 0]
    assert [op.size for op in ops] == [0, 0, 16, *[0] * 6]
    assert [op.pipe for op in ops] == ["scalar", "", "lsu", "", *["vector"] * 4, "lsu"]


def test_what_is_no_cubin_is_refused():
    with pytest.raises(ValueError, match="not a cubin"):
        elf.kernels(b"\x7fELF\x01\x01 and so on")
