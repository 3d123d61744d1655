"""What the machine does with threads and memory, and what it refuses."""

import pytest
import torch
from machine.instructions import Inexact
from machine.integers import DivisionByZero
from machine.kernels import UnknownPtx
from machine.launch import Deadlock, LaunchError
from machine.memory import MemoryFault
from machine.races import Race
from machine.registers import UndefinedRead
from machine.warps import PartOfWarp
from small_kernels import launch, machine_with

THREAD = "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r3, %r1, %r2, %r0;"
# %rd9: the address of the thread's own 32-bit number; %r9: its number.
OWN = THREAD + "mad.wide.u32 %rd9, %r3, 4, %rd0;"
SHARED = "mov.u32 %r10, buffer; shl.b32 %r11, %r0, 2; add.s32 %r12, %r10, %r11;"
BUFFER = ".shared .align 16 .b8 buffer[4096];"


def run(body, size=256, dtype=torch.int32, **how):
    """The kernel on zeros; what it leaves."""
    memory = torch.zeros(size, dtype=dtype)
    launch(machine_with(body), memory, **how)
    return memory


def test_loops_of_different_lengths_meet_again():
    body = (
        OWN
        + """
    mov.b32 %r5, 0; mov.b32 %r6, 0;
    $again: add.s32 %r5, %r5, %r0; add.s32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, %r0; @%p1 bra $again;
    setp.gt.u32 %p2, %r0, 3; @!%p2 bra $small; bra.uni $store;
    $small: mov.b32 %r5, 1000;
    $store: st.global.b32 [%rd9], %r5;"""
    )
    wanted = [1000 if t <= 3 else t * max(t, 1) for t in range(32)] * 2
    assert run(body, 64, blocks=2).tolist() == wanted


def test_more_blocks_than_run_at_a_time():
    assert run(OWN + "st.global.b32 [%rd9], %r3;", 3 * 4096, blocks=96, threads=128).tolist() == list(range(3 * 4096))


def test_vectors_narrow_numbers_and_guards():
    body = (
        THREAD
        + """
    mad.wide.u32 %rd9, %r3, 16, %rd0; setp.lt.u32 %p1, %r0, 2;
    @%p1 st.global.v4.b32 [%rd9], {%r0, 1, -1, %r2};
    ld.global.s8 %h1, [%rd9+8]; ld.global.u8 %h2, [%rd9+8];
    @!%p1 st.global.v2.u16 [%rd9+4], {%h1, %h2};"""
    )
    memory = run(body, 16, threads=4).tolist()
    assert memory == [0, 1, -1, 4, 1, 1, -1, 4, *[0] * 8]
    memory = run(body.replace("@!%p1 st", "@%p1 st"), 16, threads=4).tolist()
    assert memory[:8] == [0, 0x00FFFFFF, -1, 4, 1, 0x00FFFFFF, -1, 4]


def test_shared_memory_behind_a_barrier():
    body = (
        BUFFER
        + OWN
        + SHARED
        + """
    st.shared.b32 [%r12], %r3; bar.sync 0;
    xor.b32 %r13, %r0, 1; shl.b32 %r13, %r13, 2; add.s32 %r13, %r13, %r10;
    ld.shared.b32 %r14, [%r13]; st.global.b32 [%rd9], %r14;"""
    )
    assert run(body, 128, blocks=2, threads=64).tolist() == [i ^ 1 for i in range(128)]
    for broken in (body.replace("bar.sync 0;", ""), body.replace("[%r12]", "[buffer]")):
        with pytest.raises(Race, match="shared"):
            run(broken, 128, blocks=2, threads=64)


def test_shared_memory_behind_a_barrier_of_the_warp():
    body = (
        BUFFER
        + OWN
        + SHARED
        + """
    st.shared.b32 [%r12], %r3; bar.warp.sync -1;
    xor.b32 %r13, %r0, 1; shl.b32 %r13, %r13, 2; add.s32 %r13, %r13, %r10;
    ld.shared.b32 %r14, [%r13]; st.global.b32 [%rd9], %r14;"""
    )
    assert run(body, 128, blocks=2, threads=64).tolist() == [i ^ 1 for i in range(128)]
    of_other_warp = body.replace("%r0, 1;", "%r0, 33;")
    for broken in (body.replace("bar.warp.sync -1;", ""), of_other_warp):
        with pytest.raises(Race, match="shared"):
            run(broken, 128, blocks=2, threads=64)


def test_local_memory_and_generic_addresses():
    body = (
        ".local .align 8 .b8 depot[16];"
        + OWN
        + """
    mov.u64 %rd1, depot; cvta.local.u64 %rd2, %rd1; st.u32 [%rd2+4], %r3;
    ld.local.u32 %r5, [%rd1+4]; st.b32 [%rd9], %r5;"""
    )
    assert run(body, 64, blocks=2).tolist() == list(range(64))


def test_parameters_at_generic_addresses():
    machine = machine_with("mov.b64 %rd1, k_param_0; ld.param.u64 %rd2, [%rd1]; st.global.u64 [%rd0], %rd2;")
    memory = torch.zeros(1, dtype=torch.int64)
    launch(machine, memory, threads=1)
    assert memory.item() == memory.data_ptr()


@pytest.mark.parametrize(("text", "wanted"), [
    ("shfl.sync.bfly.b32 %r5, %r0, 3, 31, -1;", [i ^ 3 for i in range(32)]),
    ("shfl.sync.down.b32 %r5, %r0, 4, 31, -1;", [i + 4 if i < 28 else i for i in range(32)]),
    ("shfl.sync.up.b32 %r5|%p1, %r0, 4, 0, -1; selp.b32 %r5, %r5, 99, %p1;", [99] * 4 + [*range(28)]),
    ("shfl.sync.idx.b32 %r5, %r0, 7, 31, -1;", [7] * 32),
    ("shfl.sync.idx.b32 %r5, %r0, 1, 0x1c03, -1;", [i // 4 * 4 + 1 for i in range(32)]),
    ("redux.sync.add.u32 %r5, %r0, -1;", [496] * 32),
    ("redux.sync.max.s32 %r5, %r0, -1;", [31] * 32),
    ("setp.gt.u32 %p1, %r0, 29; vote.sync.ballot.b32 %r5, %p1, -1;", [-(2**30)] * 32),
    ("setp.gt.u32 %p1, %r0, 29; vote.sync.any.pred %p2, %p1, -1; selp.b32 %r5, 1, 0, %p2;", [1] * 32),
    ("setp.gt.u32 %p1, %r0, 29; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r5, 1, 0, %p2;", [0] * 32),
    ("bar.warp.sync -1; mov.b32 %r5, 5;", [5] * 32),
    ("barrier.sync 0; mov.b32 %r5, 5;", [5] * 32),
])  # fmt: skip
def test_warps(text, wanted):
    assert run(OWN + text + "st.global.b32 [%rd9], %r5;", 32).tolist() == wanted


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_to_shared_memory(trans):
    # Thread t's register holds elements 2 t and 2 t + 1 of a matrix of 8 x 8, or of its transpose.
    body = (
        BUFFER
        + OWN
        + SHARED
        + f"""
    shl.b32 %r5, %r0, 17; shl.b32 %r6, %r0, 1; or.b32 %r5, %r5, %r6; add.s32 %r5, %r5, 0x10000;
    and.b32 %r7, %r0, 7; shl.b32 %r7, %r7, 4; add.s32 %r7, %r7, %r10;
    stmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 [%r7], {{%r5}};
    bar.sync 0; ld.shared.b32 %r8, [%r12]; st.global.b32 [%rd9], %r8;"""
    )
    found = run(body, 32).view(torch.int16).view(8, 8)
    wanted = torch.arange(64, dtype=torch.int16).view(8, 8)
    assert torch.equal(found, wanted.T if trans else wanted)


@pytest.mark.parametrize(("body", "error", "text"), [
    ("ld.global.v2.b32 {%r5, %r6}, [%rd9];", MemoryFault, "not aligned to 8"),
    ("ld.global.b32 %r5, [%rd9+1024];", MemoryFault, "in no registered tensor"),
    ("ld.global.b64 %rd5, [%rd0+1024];", MemoryFault, "in no registered tensor"),
    ("ld.global.b32 %r5, [%rd0+-4];", MemoryFault, "in no registered tensor"),
    ("st.global.b32 [%rd0], %r0;", Race, "threads"),
    ("ld.global.b32 %r5, [%rd0]; st.global.b32 [%rd9], %r5;", Race, "threads"),
    ("ld.global.nc.b32 %r5, [%rd9]; st.global.b32 [%rd9], %r5;", Race, "constant"),
    ("st.shared.b32 [%r3], %r0;", MemoryFault, "of 0 bytes"),
    ("add.s32 %r5, %r6, 1;", UndefinedRead, "%r6"),
    ("@%p3 add.s32 %r5, %r0, 1;", UndefinedRead, "%p3"),
    ("setp.gt.u32 %p1, %r0, 3; @%p1 mov.b32 %r5, 1; add.s32 %r6, %r5, 1;", UndefinedRead, "%r5"),
    ("mov.b32 %r5, 0; div.s32 %r6, %r0, %r5;", DivisionByZero, "div.s32"),
    ("mov.f32 %f1, 0f3F800000; sqrt.approx.f32 %f2, %f1;", Inexact, "approx"),
    ("mov.f32 %f1, 0f3F800000; add.rn.ftz.f32 %f2, %f1, %f1;", Inexact, "ftz"),
    ("mov.f32 %f1, 0f3F800000; mul.f32 %f2, %f1, %f1;", Inexact, "contract"),
    ("mov.f32 %f1, 0f3F800000; mul.rz.f32 %f2, %f1, %f1;", Inexact, "without .rn"),
    ("mov.f32 %f1, 0f3F800000; div.full.f32 %f2, %f1, %f1;", Inexact, "full"),
    ("mov.f32 %f1, 0f3F800000; add.rn.sat.f32 %f2, %f1, %f1;", UnknownPtx, ".sat of add"),
    ("mov.f32 %f1, 0f3F800000; ex2.rn.f32 %f2, %f1;", UnknownPtx, "instruction ex2"),
    ("atom.global.add.u32 %r5, [%rd9], 1;", UnknownPtx, "instruction atom"),
    ("mov.u32 %r5, %clock;", UnknownPtx, "%clock"),
    ("setp.gt.u32 %p1, %r0, 3; @%p1 bra $out; bar.sync 0; $out: bar.sync 0;", Deadlock, "bar.sync"),
    ("setp.gt.u32 %p1, %r0, 3; @%p1 bra $out; redux.sync.add.s32 %r5, %r0, -1; $out: bar.sync 0;", Deadlock, "redux"),
    ("setp.gt.u32 %p1, %r0, 3; @%p1 ret; redux.sync.add.s32 %r5, %r0, -1;", PartOfWarp, "redux"),
    ("redux.sync.add.s32 %r5, %r0, 15;", PartOfWarp, "named"),
])  # fmt: skip
def test_what_is_refused(body, error, text):
    with pytest.raises(error, match=text.replace("[", r"\[")):
        run(OWN + body)


def test_threads_that_have_returned_hold_up_no_barrier():
    body = OWN + "setp.gt.u32 %p1, %r0, 3; @%p1 bra $out; bar.sync 0; st.global.b32 [%rd9], 5; $out:"
    assert run(body, 32).tolist() == [5] * 4 + [0] * 28


def test_a_launch_that_is_refused_leaves_nothing_to_the_next():
    machine = machine_with(OWN + "st.global.b32 [%rd9], %r3; ld.global.b32 %r5, [%rd9+128];")
    memory = torch.zeros(64, dtype=torch.int32)
    for _ in range(2):
        with pytest.raises(MemoryFault, match="no registered tensor"):
            launch(machine, memory, blocks=2)
    launch(machine, torch.zeros(96, dtype=torch.int32))


def test_memory_that_may_not_be_written():
    machine = machine_with(OWN + "mad.wide.u32 %rd9, %r3, 4, %rd1; st.global.b32 [%rd9], %r3;", pointers=2)
    first, second = torch.zeros(64, dtype=torch.int32).split(32)
    with pytest.raises(MemoryFault, match="read-only"):
        launch(machine, first, second, read_only=1)
    launch(machine, first, second)
    assert second.tolist() == list(range(32))


def test_a_write_that_another_block_reads_is_a_race():
    body = OWN + "st.global.b32 [%rd9], %r3; bar.sync 0; ld.global.b32 %r5, [%rd0];"
    run(body, threads=32)  # of the same block, behind a barrier
    for blocks in (2, 65):  # the last one runs when the first ones are through
        with pytest.raises(Race):
            run(body, 65 * 32, blocks=blocks)


def test_equal_values_by_one_instruction_are_no_race():
    run(OWN + "st.global.b32 [%rd0], 7;")
    with pytest.raises(Race):
        run(OWN + "setp.gt.u32 %p1, %r0, 3; @%p1 st.global.b32 [%rd0], 7; @!%p1 st.global.b32 [%rd0], %r2;")


def test_a_number_that_a_warp_loads_and_one_thread_of_it_stores_is_no_race():
    body = (
        OWN + "ld.global.b32 %r5, [%rd0]; add.s32 %r5, %r5, 7; setp.eq.s32 %p1, %r3, 0; @%p1 st.global.b32 [%rd0], %r5;"
    )
    assert run(body).tolist()[:2] == [7, 0]
    for how in (dict(threads=64), dict(blocks=2)):
        with pytest.raises(Race):
            run(body, **how)


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr("machine.launch.MOST_BLOCKS", 100)
    with pytest.raises(Deadlock, match="does not end"):
        run("$again: bra.uni $again;")


def test_launches_that_a_driver_refuses():
    memory = torch.zeros(64, dtype=torch.int32)
    for how in (dict(blocks=0), dict(threads=0), dict(threads=1025)):
        with pytest.raises(LaunchError):
            launch(machine_with(""), memory, **how)
    for attributes, threads in ((".maxntid 64, 1, 1", 65), (".reqntid 64", 32)):
        with pytest.raises(LaunchError, match="compiled for 64"):
            launch(machine_with("", attributes=attributes), memory, threads=threads)
    with pytest.raises(LaunchError, match="no kernel"):
        machine_with("").launch("other", 1, 32, bytes(8))
    with pytest.raises(LaunchError, match="takes 16"):
        launch(machine_with("", pointers=2), memory)


def test_what_the_text_may_not_hold():
    for body, text in ((".weird 5;", ".weird"), ("mov.u32 %q1, 0;", "%q1"), (".reg .b128 %x; mov.u32 %r1, 0;", "b128")):
        with pytest.raises(UnknownPtx, match=text):
            run(body)
