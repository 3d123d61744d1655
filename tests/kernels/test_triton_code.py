"""The machine code of the Triton kernels, compiled ahead of time: no spills, wide accesses, nothing approximate.

LRTRICKS_FULL=1 (``make test-all``) compiles every pair for every target; else f32 of three rules for sm_90, of Adam for
every target, and two more pairs of Adam's for sm_90 and one for an AMD GPU; with centralized gradients, f32 of Adam for
sm_90 and an AMD GPU; with a slope f32 of Adam for sm_90, of shards bf16, too; three kinds of what is stored otherwise
than it is stepped, of Adam for sm_90; of the kernels that add up and upload, f32.
"""

import re
from collections import Counter

import pytest
from inventory import FULL

from bench.machine_code import amdgcn, bandwidth, sass, triton_model, triton_sums, triton_text
from bench.machine_code.variants import VARIANTS

MISSING = triton_model.why_not()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))

AMD = 942
BUDGET = 80  # instructions per parameter, as of the CUDA kernels
# Of Adam for sm_90, what Triton makes of it now; and of an H200's bandwidth, by the model.
BUDGETS = {"bf16/f32": 56, "bf16": 58, "offload": 58, "f32/bf16 stoch.": 67}
FLOORS = {"bf16": 0.95, "offload": 0.95, "f32/bf16 stoch.": 0.9}
MASK_RATIO = 1.35
CENTRALIZING_BUDGET = 10  # more of them: the slice, its mean, the difference; a division alone takes twice as many
ROWS = 8
OFTEN = ("Adam", "AMSGrad", "SGD momentum")  # many states, and few
INEXACT = re.compile(r"\.ftz|\.approx|\bfma\.")


def chosen(arch: int, rule: str, dtype: str) -> bool:
    """Whether a kernel is compiled without LRTRICKS_FULL: a compilation takes seconds, and there are 144."""
    of_adam = rule == "Adam" and (
        dtype == "f32" or (dtype, arch) in (("bf16", 90), ("bf16/f32", 90), ("bf16/f32", AMD))
    )
    # Which holds most registers there, and has more than elsewhere.
    of_80 = (arch, rule, dtype) == (80, "AMSGrad", "bf16")
    return FULL or of_adam or of_80 or ((arch, dtype) == (90, "f32") and rule in OFTEN)


STEPS = [(a, r, d) for a in triton_model.ARCHS for r in VARIANTS for d in triton_model.DTYPES
         if chosen(a, r, d)]  # fmt: skip
CENTRALIZING = [(a, r, d, True) for a in triton_model.ARCHS for r in ("Adam", "AMSGrad") for d in triton_model.DTYPES
                if (FULL and (a, r) != (AMD, "AMSGrad"))
                or (a, r, d) in ((90, "Adam", "f32"), (AMD, "Adam", "f32"), (90, "Adam", "bf16"))]  # fmt: skip
SLOPES = [(a, r, d, c) for a in triton_model.ARCHS for r in VARIANTS for d in triton_model.DTYPES
          for c in (False, True) if FULL or (a, r, d) == (90, "Adam", "f32")]  # fmt: skip
SHARDS = [(a, r, d) for a in triton_model.ARCHS for r in VARIANTS for d in triton_model.DTYPES
          if FULL or (a, r, d) in ((90, "Adam", "f32"), (90, "Adam", "bf16"))]  # fmt: skip
STORED = [
    (a, r, n)
    for a in triton_model.ARCHS
    for r in VARIANTS
    for n in triton_model.STORED
    if FULL or ((a, r) == (90, "Adam") and n in ("offload", "offload, changes", "f32/bf16 stoch."))
]
STORED_SHARDS = [(a, r, n) for a, r, n in STORED if FULL and r == "Adam"]
MEANS = [(a, k, d) for a in triton_model.ARCHS for k in ("sum_partials", "find_means") for d in triton_model.MEANS
         if FULL or (a in (90, AMD) and d == "f32")]  # fmt: skip
PREPARES = [(a, r, d) for a in triton_model.ARCHS for r in VARIANTS for d in ("f32", "f64")
            if r != "AMSGrad" and (FULL or (a in (90, AMD) and d == "f32"))]  # fmt: skip
SUMS = [(a, k, d) for a in triton_model.ARCHS for k in triton_sums.KERNELS for d in triton_model.MEANS
        if (d == "f32" or (FULL and k in triton_sums.OF_DTYPE)) and (FULL or a in (90, AMD))]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _all_at_once():
    # Submitted before the first result is awaited, so that all processors are at work.
    if not MISSING:
        for key in (*STEPS, *CENTRALIZING):
            triton_model.step_reading(*key)
        for key in SLOPES:
            triton_model.slope_reading(*key)
        for key in SHARDS:
            triton_model.shard_reading(*key)
        for key in STORED:
            triton_model.stored_reading(*key)
        for key in STORED_SHARDS:
            triton_model.stored_reading(*key, True)
        for key in PREPARES:
            triton_model.prepare_reading(*key)
        for key in MEANS:
            triton_model.means_reading(*key)
        for key in SUMS:
            triton_sums.sums_reading(*key)
        for stored in FLOORS:
            triton_text.step_text(90, "Adam", stored)


def name(key: object) -> str:
    return str(key).replace(" ", "_")


def check_arithmetic(arch: int, reading: triton_model.Reading) -> None:
    """Every product and sum is rounded, denormals are kept, square roots and divisions are exact."""
    if arch == AMD:
        assert amdgcn.number(reading.text, "amdhsa_float_denorm_mode_32") == 3
        assert amdgcn.number(reading.text, "amdhsa_float_denorm_mode_16_64") == 3
    else:
        assert not INEXACT.findall(reading.text)


def check_memory(reading: triton_model.Reading) -> None:
    assert (reading.spills, reading.local_accesses, reading.stack_bytes) == (0, 0, 0)


def expected_widths(rule: str, dtype: str, grads: int | None = None) -> dict[int, int]:
    """Accesses of eight rows by their bytes: 16, or for the narrower type of a pair as many elements as the wider has.

    ``grads``: of so many elements at once are the accesses to the gradient.
    """
    param, state = (triton_model.BYTES[one] for one in triton_model.DTYPES[dtype])
    elements = 16 // max(param, state)
    at_once = grads or elements
    widths: dict[int, int] = {}
    accesses = [(param * elements, 2), (param * at_once, elements // at_once),
                (state * elements, 2 * VARIANTS[rule].states)]  # fmt: skip
    for width, number in accesses:
        widths[width] = widths.get(width, 0) + ROWS * number
    return widths


def check_unaligned(rule: str, dtype: str, widths: dict[int, int]) -> None:
    """Of an unaligned gradient the elements are read one by one, and nothing else is."""
    expected = expected_widths(rule, dtype, grads=1)
    param = triton_model.BYTES[triton_model.DTYPES[dtype][0]]
    times = widths[max(widths)] // expected[max(widths)]
    for width, number in expected.items():
        table = range(5) if width == param else range(1)  # words of the table and of the scratch, in accesses as narrow
        assert widths[width] - times * number in table
    assert not {2, 8, 16} & (widths.keys() - expected.keys() - {8 if param > 2 else 0})


@pytest.mark.parametrize("key", [*STEPS, *CENTRALIZING], ids=name)
def test_step_kernel(key):
    arch, rule, dtype = key[:3]
    reading = triton_model.step_reading(*key).result()
    check_memory(reading)
    check_arithmetic(arch, reading)
    assert reading.shared_bytes == 0
    expected = expected_widths(rule, dtype)
    times = sum(reading.widths.values()) // sum(expected.values())  # passes that were unrolled
    assert reading.widths == {width: times * number for width, number in expected.items()}
    assert reading.unmasked < reading.masked


@pytest.mark.parametrize("key", STEPS, ids=name)
def test_an_unaligned_gradient_alone_is_read_narrowly(key):
    reading = triton_model.step_reading(*key).result()
    check_unaligned(*key[1:], reading.unaligned)


@pytest.mark.parametrize("key", STEPS, ids=name)
def test_loads_are_under_way_before_they_are_needed(key):
    _, rule, dtype = key
    reading = triton_model.step_reading(*key).result()
    operands = 2 + VARIANTS[rule].states
    assert reading.ahead >= 2 * operands  # of the next row, too
    rows = 2 if dtype == "f64" else ROWS
    assert reading.tail_ahead >= rows * operands  # of the whole of a small tensor


@pytest.mark.parametrize("key", SLOPES, ids=name)
def test_step_kernel_with_a_slope(key):
    reading = triton_model.slope_reading(*key).result()
    check_memory(reading)
    check_arithmetic(key[0], reading)


@pytest.mark.parametrize("key", SHARDS, ids=name)
def test_step_kernel_of_shards(key):
    reading = triton_model.shard_reading(*key).result()
    check_memory(reading)
    check_arithmetic(key[0], reading)


def check_registers(arch: int, reading: triton_model.Reading) -> None:
    """Nothing goes to memory; scalar registers of AMD's GPUs may go to others."""
    if arch == AMD:
        assert (reading.local_accesses, reading.stack_bytes) == (0, 0)
    else:
        check_memory(reading)


@pytest.mark.parametrize("key", STORED, ids=name)
def test_step_kernel_of_what_is_stored_otherwise(key):
    arch, rule, stored = key
    reading = triton_model.stored_reading(*key).result()
    check_registers(arch, reading)
    check_arithmetic(arch, reading)
    kind = triton_model.STORED[stored]
    assert bool(reading.shared_bytes) == kind.tracked  # where bits of lanes become bytes
    param, grad, state, *beside = kind.sizes
    lanes = 16 // max(param, state, grad)
    lanes = min(lanes, 4) if kind.rounds else lanes
    written = Counter(lanes * size for size in [param, *[state] * VARIANTS[rule].states, *beside])
    paths = 2  # where the gradient is aligned, and where it is not
    assert {size: n for size, n in reading.stores.items() if size >= 8} == {
        s: paths * ROWS * n for s, n in written.items()
    }
    read = Counter({size: paths * n for size, n in written.items()}) + Counter([lanes * grad])
    assert all(reading.loads[size] >= ROWS * n for size, n in read.items())


@pytest.mark.parametrize("key", STORED_SHARDS, ids=name)
def test_step_kernel_of_shards_of_what_is_stored_otherwise(key):
    reading = triton_model.stored_reading(*key, True).result()
    check_registers(key[0], reading)
    check_arithmetic(key[0], reading)


@pytest.mark.parametrize(("arch", "rule", "dtype"), PREPARES, ids=name)
def test_prepare_kernel(arch, rule, dtype):
    reading = triton_model.prepare_reading(arch, rule, dtype).result()
    check_memory(reading)
    check_arithmetic(arch, reading)


@pytest.mark.parametrize(("arch", "kernel", "dtype"), MEANS, ids=name)
def test_kernels_of_means(arch, kernel, dtype):
    reading = triton_model.means_reading(arch, kernel, dtype).result()
    check_memory(reading)
    check_arithmetic(arch, reading)


@pytest.mark.parametrize(("arch", "kernel", "dtype"), SUMS, ids=name)
def test_kernels_that_add_up_and_upload(arch, kernel, dtype):
    reading = triton_sums.sums_reading(arch, kernel, dtype).result()
    check_memory(reading)
    check_arithmetic(arch, reading)


def test_dwordx4_on_amd():
    text = triton_model.step_reading(AMD, "Adam", "f32").result().text
    assert re.search(r"buffer_load_dwordx4|global_load_dwordx4", text)
    assert re.search(r"buffer_store_dwordx4|global_store_dwordx4", text)


@pytest.mark.parametrize("arch", triton_model.ARCHS)
def test_instructions_of_adam_stay_in_budget(arch):
    reading = triton_model.step_reading(arch, "Adam", "f32").result()
    assert reading.masked <= BUDGET
    assert reading.masked <= MASK_RATIO * reading.unmasked


@pytest.mark.parametrize("stored", BUDGETS)
def test_instructions_of_adam_in_sixteen_bits_stay_in_budget(stored):
    reading = triton_model.reading_of(90, "Adam", stored).result()
    assert reading.unmasked <= reading.masked <= BUDGETS[stored]
    assert (reading.unmasked == reading.masked) == stored.endswith("stoch.")  # by words that are drawn in any case


@pytest.mark.parametrize("stored", FLOORS)
def test_predicted_share_of_adam_in_sixteen_bits(stored):
    kernel = bandwidth.Kernel("triton", "Adam", stored, *triton_text.step_text(90, "Adam", stored).result())
    assert bandwidth.predict(kernel, "H200").run.share >= FLOORS[stored]


@pytest.mark.parametrize("arch", [key[0] for key in CENTRALIZING if key[1:3] == ("Adam", "f32")])
def test_a_centralized_gradient_costs_few_instructions(arch):
    plain, centralizing = (triton_model.step_reading(arch, "Adam", "f32", *c).result() for c in ((), (True,)))
    assert centralizing.masked - plain.masked <= CENTRALIZING_BUDGET


AMD_LOOP = """kernel:
\ts_branch .LBB0_3
.LBB0_1:                                ; a loop whose head stands last, as LLVM rotates it
\tv_mul_hi_u32 v1, v2, s0
.LBB0_2:
\tbuffer_load_dwordx4 v[0:3], v8, s[16:19], 0 offen
\tbuffer_store_dwordx2 v[0:1], v8, s[16:19], 0 offen
\ts_cbranch_vccnz .LBB0_4
.LBB0_3:
\ts_cbranch_scc0 .LBB0_1
\tv_mov_b32_e32 v1, 0
\ts_branch .LBB0_2
.LBB0_4:
\ts_endpgm
.Lfunc_end0:
"""


def test_rotated_loop_of_amd_becomes_one_loop():
    code = amdgcn.parse(AMD_LOOP, "kernel")
    (loop,) = sass.loops(code)
    passes = sass.passes(code, loop)
    assert len(passes.branches) == 1
    for way in (passes.longest, passes.shortest):
        assert [code[i].access_bytes for i in way if code[i].access_bytes] == [16, 8]
        assert sum(code[i].counts for i in way) == 3
    assert sum(code[i].is_store for i in passes.longest) == 1
    assert amdgcn.number("    .vgpr_count:     49\n", "vgpr_count") == 49


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("s_cbranch_scc0 .LBB0_1", "s_cbranch_scc0 .LBB0_9"),
        ("v_mov_b32_e32 v1, 0", "s_setpc_b64 s[0:1]"),
        ("buffer_load_dwordx4", "buffer_load_format_x"),
    ],
)
def test_unknown_amd_code_is_refused(old, new):
    with pytest.raises(sass.UnknownStructure):
        sum(this.access_bytes for this in amdgcn.parse(AMD_LOOP.replace(old, new), "kernel"))
