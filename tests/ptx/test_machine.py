"""What each instruction of the machine does: bits in, bits out, by hand."""

import pytest
from machine.instructions import TABLE
from small_kernels import bits, evaluate

M32, M64, NAN, INF = 2**32, 2**64, 0x7FFFFFFF, 0x7F800000
NAN64, SNAN, TINY = 2**63 - 1, 0x7FA00001, 1  # the smallest subnormal
ONE, TWO, THIRD = bits(1.0), bits(2.0), bits(1 / 3)
D = "f64"


def f(value):
    return bits(value)


def d(value):
    return bits(value, D)


# An instruction, the types of its result and operands, and rows of operands with the result.
ROWS = [
    ("add.s32 %out, %a, %b", "s32 s32 s32", [((2**31 - 1, 1), 2**31), ((M32 - 1, 1), 0)]),
    ("add.s64 %out, %a, %b", "s64 s64 s64", [((M64 - 1, 2), 1), ((2**40, 2**40), 2**41)]),
    ("add.s16 %out, %a, %b", "s16 s16 s16", [((0xFFFF, 2), 1)]),
    ("sub.s32 %out, %a, %b", "s32 s32 s32", [((0, 1), M32 - 1)]),
    ("mul.lo.s32 %out, %a, %b", "s32 s32 s32", [((0x10001, 0x10001), 0x20001), ((M32 - 3, 5), M32 - 15)]),
    ("mul.lo.u64 %out, %a, %b", "u64 u64 u64", [((2**33 + 1, 2**33 + 3), (2**33 + 1) * (2**33 + 3) % M64)]),
    ("mul.hi.u32 %out, %a, %b", "u32 u32 u32", [((M32 - 1, M32 - 1), M32 - 2),
                                                ((0xD2511F53, 7), 0xD2511F53 * 7 >> 32)]),
    ("mul.hi.s32 %out, %a, %b", "s32 s32 s32", [((M32 - 1, 2), M32 - 1)]),
    ("mul.hi.u64 %out, %a, %b", "u64 u64 u64", [((M64 - 1, M64 - 1), M64 - 2),
                                                ((2**63 + 12345, 2**62 + 999), (2**63 + 12345) * (2**62 + 999) >> 64)]),
    ("mul.hi.s64 %out, %a, %b", "s64 s64 s64", [((M64 - 5, 3), M64 - 1), ((2**63, 2**63), 2**62)]),
    ("mul.wide.u32 %out, %a, %b", "u64 u32 u32", [((M32 - 1, M32 - 1), (M32 - 1) ** 2)]),
    ("mul.wide.s32 %out, %a, %b", "s64 s32 s32", [((M32 - 1, 5), M64 - 5)]),
    ("mul.wide.s16 %out, %a, %b", "s32 s16 s16", [((0xFFFF, 5), M32 - 5)]),
    ("mad.lo.s32 %out, %a, %b, %c", "s32 s32 s32 s32", [((3, 5, 7), 22)]),
    ("mad.hi.u32 %out, %a, %b, %c", "u32 u32 u32 u32", [((M32 - 1, M32 - 1, 9), 7)]),
    ("mad.wide.s32 %out, %a, %b, %c", "s64 s32 s32 s64", [((M32 - 1, 8, 3), M64 - 5)]),
    ("div.s32 %out, %a, %b", "s32 s32 s32", [((M32 - 7, 2), M32 - 3), ((7, M32 - 2), M32 - 3), ((7, 2), 3)]),
    ("div.u64 %out, %a, %b", "u64 u64 u64", [((M64 - 1, 10), (M64 - 1) // 10)]),
    ("rem.s32 %out, %a, %b", "s32 s32 s32", [((M32 - 7, 2), M32 - 1), ((7, M32 - 2), 1)]),
    ("rem.u32 %out, %a, %b", "u32 u32 u32", [((M32 - 1, 10), 5)]),
    ("min.s64 %out, %a, %b", "s64 s64 s64", [((M64 - 1, 1), M64 - 1)]),
    ("max.u32 %out, %a, %b", "u32 u32 u32", [((M32 - 1, 1), M32 - 1)]),
    ("neg.s32 %out, %a", "s32 s32", [((5,), M32 - 5)]),
    ("abs.s32 %out, %a", "s32 s32", [((M32 - 5,), 5)]),
    ("and.b32 %out, %a, %b", "b32 b32 b32", [((12, 10), 8)]),
    ("or.b32 %out, %a, %b", "b32 b32 b32", [((12, 10), 14)]),
    ("xor.b64 %out, %a, %b", "b64 b64 b64", [((M64 - 1, 10), M64 - 11)]),
    ("not.b32 %out, %a", "b32 b32", [((0,), M32 - 1)]),
    ("and.pred %out, %a, %b", "pred pred pred", [((1, 0), 0), ((1, 1), 1)]),
    ("not.pred %out, %a", "pred pred", [((1,), 0)]),
    ("shl.b32 %out, %a, %b", "b32 b32 u32", [((1, 31), 2**31), ((1, 32), 0), ((3, M32 - 1), 0)]),
    ("shr.u32 %out, %a, %b", "u32 u32 u32", [((2**31, 31), 1), ((2**31, 32), 0)]),
    ("shr.s32 %out, %a, %b", "s32 s32 u32", [((2**31, 31), M32 - 1), ((2**31, 99), M32 - 1), ((2**30, 99), 0)]),
    ("shr.s64 %out, %a, 3", "s64 s64", [((M64 - 8,), M64 - 1)]),
    ("shl.b64 %out, %a, 63", "b64 b64", [((3,), 2**63)]),
    ("shf.l.wrap.b32 %out, %a, %b, %c", "b32 b32 b32 b32", [((0x80000000, 1, 1), 3), ((5, 7, 32), 7)]),
    ("shf.r.clamp.b32 %out, %a, %b, %c", "b32 b32 b32 b32", [((2, 1, 1), 2**31 + 1), ((2, 1, 40), 1)]),
    ("bfe.u32 %out, %a, %b, %c", "u32 u32 u32 u32", [((0x12345678, 16, 4), 4), ((0xFFFFFFFF, 30, 8), 3),
                                                     ((7, 0, 0), 0)]),
    ("bfe.s32 %out, %a, %b, %c", "s32 s32 u32 u32", [((0x80, 4, 4), M32 - 8), ((2**31, 31, 1), M32 - 1),
                                                     ((2**31, 30, 9), M32 - 2), ((255, 0, 0), 0)]),
    ("bfi.b32 %out, %a, %b, 8, %c", "b32 b32 b32 u32", [((0xABCD, 0x11111111, 8), 0x1111CD11),
                                                        ((0xFF, 0x12345678, 0), 0x12345678),
                                                        ((0x123456, M32 - 1, 99), 0x123456FF)]),
    ("bfi.b64 %out, %a, %b, 60, 8", "b64 b64 b64", [((0x5A, 7), 0xA << 60 | 7)]),
    ("prmt.b32 %out, %a, %b, 0x5410", "b32 b32 b32", [((0x33221100, 0x77665544), 0x55441100)]),
    ("prmt.b32 %out, %a, 0, 0x0008", "b32 b32", [((0x80,), 0x808080FF)]),
    ("lop3.b32 %out, %a, %b, %c, 0x96", "b32 b32 b32 b32", [((12, 10, 9), 12 ^ 10 ^ 9)]),
    ("popc.b32 %out, %a", "u32 b32", [((0xF0F0,), 8)]),
    ("mov.b64 %out, {%a, %b}", "b64 b32 b32", [((1, 2), 2 * M32 + 1)]),
    ("mov.b32 %out, {%a, %b}", "b32 b16 b16", [((1, 2), 0x20001)]),
    ("mov.b32 {_, %out}, %a", "b16 b32", [((0x20001,), 2)]),
    ("mov.u32 %out, %laneid", "u32", [((), 0), ((), 1)]),
    ("mov.f32 %out, 0f3F800000", "f32", [((), ONE)]),
    ("mov.b32 %out, -1", "b32", [((), M32 - 1)]),
    ("selp.b32 %out, %a, %b, %c", "b32 b32 b32 pred", [((1, 2, 1), 1), ((1, 2, 0), 2)]),
    ("selp.f32 %out, %a, %b, %c", "f32 f32 f32 pred", [((SNAN, 2, 1), SNAN)]),
    ("setp.lt.s32 %out, %a, %b", "pred s32 s32", [((M32 - 1, 0), 1), ((0, 0), 0)]),
    ("setp.lt.u32 %out, %a, %b", "pred u32 u32", [((M32 - 1, 0), 0)]),
    ("setp.eq.and.s32 %out, %a, %b, %c", "pred s32 s32 pred", [((1, 1, 0), 0), ((1, 1, 1), 1)]),
    *((f"setp.{name}.f32 %out, %a, %b", "pred f32 f32", [((NAN, ONE), nan), ((ONE, TWO), less), ((ONE, ONE), same),
                                                         ((0, 2**31), same)])
      for name, nan, less, same in [("eq", 0, 0, 1), ("ne", 0, 1, 0), ("lt", 0, 1, 0), ("le", 0, 1, 1), ("gt", 0, 0, 0),
                                    ("ge", 0, 0, 1), ("equ", 1, 0, 1), ("neu", 1, 1, 0), ("ltu", 1, 1, 0),
                                    ("leu", 1, 1, 1), ("gtu", 1, 0, 0), ("geu", 1, 0, 1), ("num", 0, 1, 1),
                                    ("nan", 1, 0, 0)]),
    ("add.rn.f32 %out, %a, %b", "f32 f32 f32", [((ONE, f(2**-24)), ONE), ((f(1 + 2**-23), f(2**-24)), f(1 + 2**-22)),
                                                ((INF, INF + 2**31), NAN), ((SNAN, ONE), NAN), ((TINY, TINY), 2)]),
    ("sub.rn.f64 %out, %a, %b", "f64 f64 f64", [((d(1.0), d(2**-54)), d(1.0)), ((NAN64, 0), NAN64)]),
    ("mul.rn.f32 %out, %a, %b", "f32 f32 f32", [((f(2.0**-100), f(2.0**-49)), 1), ((0, INF), NAN),
                                                ((2**31, ONE), 2**31)]),
    ("div.rn.f32 %out, %a, %b", "f32 f32 f32", [((ONE, f(3.0)), THIRD), ((ONE, 0), INF), ((0, 0), NAN), ((3, TWO), 2)]),
    ("rcp.rn.f64 %out, %a", "f64 f64", [((d(3.0),), d(1 / 3)), ((2**63,), d(-float("inf")))]),
    ("sqrt.rn.f32 %out, %a", "f32 f32", [((TWO,), 0x3FB504F3), ((f(-1.0),), NAN), ((2**31,), 2**31)]),
    # 1 + 2**-12 squared less its rounded square: what rounding once shows.
    ("fma.rn.f32 %out, %a, %b, %c", "f32 f32 f32 f32",
     [((f(1 + 2**-12), f(1 + 2**-12), f(-(1 + 2**-11))), f(2**-24))]),
    ("fma.rn.f64 %out, %a, %b, %c", "f64 f64 f64 f64",
     [((d(1 + 2**-30), d(1 + 2**-30), d(-(1 + 2**-29))), d(2.0**-60))]),
    ("min.f32 %out, %a, %b", "f32 f32 f32", [((0, 2**31), 2**31), ((2**31, 0), 2**31), ((NAN, ONE), ONE),
                                             ((ONE, SNAN), ONE), ((SNAN, SNAN), NAN), ((ONE, TWO), ONE)]),
    ("max.f64 %out, %a, %b", "f64 f64 f64", [((0, 2**63), 0), ((2**63, 0), 0), ((NAN64, d(1.0)), d(1.0)),
                                             ((d(1.0), d(2.0)), d(2.0))]),
    ("neg.f32 %out, %a", "f32 f32", [((0,), 2**31), ((SNAN,), SNAN + 2**31)]),
    ("abs.f64 %out, %a", "f64 f64", [((d(-2.0),), d(2.0))]),
    ("copysign.f64 %out, %a, %b", "f64 f64 f64", [((d(-1.0), d(3.0)), d(-3.0))]),
    ("add.rn.f32x2 %out, %a, %b", "b64 b64 b64", [((ONE << 32 | TWO, TWO << 32 | SNAN), f(3.0) << 32 | NAN)]),
    ("mul.rn.f32x2 %out, %a, %b", "b64 b64 b64", [((ONE << 32 | TWO, TWO << 32 | TWO), TWO << 32 | f(4.0))]),
    ("add.rn.f32.bf16 %out, %a, %b", "f32 bf16 f32", [((0x3F80, TWO), f(3.0))]),
    ("sub.rn.f32.f16 %out, %a, %b", "f32 f16 f32", [((0x3C00, TWO), f(-1.0))]),
    ("cvt.u32.u64 %out, %a", "u32 u64", [((2**40 + 5,), 5)]),
    ("cvt.s64.s32 %out, %a", "s64 s32", [((M32 - 1,), M64 - 1)]),
    ("cvt.u64.u32 %out, %a", "u64 u32", [((M32 - 1,), M32 - 1)]),
    ("cvt.s16.s8 %out, %a", "s16 s8", [((0x1FF,), 0xFFFF), ((0x7F,), 0x7F)]),
    ("cvt.rn.f32.s64 %out, %a", "f32 s64", [((2**53 + 2**29 + 1,), f(2.0**53 + 2**30)), ((M64 - 1,), f(-1.0))]),
    ("cvt.rn.f64.u64 %out, %a", "f64 u64", [((M64 - 1,), d(2.0**64))]),
    ("cvt.rzi.s32.f32 %out, %a", "s32 f32", [((f(-1.9),), M32 - 1), ((f(1e20),), 2**31 - 1), ((NAN,), 0),
                                             ((f(-1e20),), 2**31)]),
    ("cvt.rzi.s32.f64 %out, %a", "s32 f64", [((NAN64,), 2**31), ((d(7.9),), 7)]),
    ("cvt.rzi.u64.f64 %out, %a", "u64 f64", [((d(-3.0),), 0), ((d(1e30),), M64 - 1), ((NAN64,), 2**63)]),
    ("cvt.f64.f32 %out, %a", "f64 f32", [((ONE,), d(1.0)), ((TINY,), d(2.0**-149)), ((SNAN,), NAN64)]),
    ("cvt.rn.f32.f64 %out, %a", "f32 f64", [((d(1 + 2**-24),), ONE), ((d(1e300),), INF), ((NAN64,), NAN)]),
    ("cvt.rn.f16.f32 %out, %a", "f16 f32", [((f(65519.9),), 0x7BFF), ((f(65520.0),), 0x7C00), ((f(2.0**-24),), 1),
                                            ((NAN,), 0x7FFF)]),
    ("cvt.f32.f16 %out, %a", "f32 f16", [((1,), f(2.0**-24)), ((0xFC00,), INF + 2**31)]),
    ("cvt.rn.bf16.f32 %out, %a", "bf16 f32", [((0x3F808000,), 0x3F80), ((0x3F818000,), 0x3F82), ((0x7F7FFFFF,), 0x7F80),
                                              ((SNAN,), 0x7FFF)]),
    ("cvt.f32.bf16 %out, %a", "f32 bf16", [((0x3F80,), ONE)]),
    ("cvt.rn.bf16x2.f32 %out, %a, %b", "b32 f32 f32", [((ONE, TWO), 0x3F804000)]),
    ("cvt.rn.f16x2.f32 %out, %a, %b", "b32 f32 f32", [((ONE, TWO), 0x3C004000)]),
    ("createpolicy.fractional.L2::evict_first.b64 %out", "b64", [((), 0)]),
    ("cvta.to.global.u64 %out, %a", "u64 u64", [((4096,), 4096)]),
    ("prefetch.global.L2 [%rd0]; mov.u32 %out, 7", "u32", [((), 7)]),
    ("membar.gl; fence.acq_rel.gpu; mov.u32 %out, 7", "u32", [((), 7)]),
]  # fmt: skip
# Those that act on more than one thread or on memory: test_machine_threads.py.
ELSEWHERE = {"ld", "st", "bar", "barrier", "shfl", "redux", "vote", "stmatrix"}


@pytest.mark.parametrize(("text", "types", "rows"), ROWS, ids=[row[0] for row in ROWS])
def test_instruction(text, types, rows):
    assert evaluate(text, types.split(), [given for given, _ in rows]) == [wanted for _, wanted in rows]


def test_every_instruction_is_tested():
    tested = {part.strip().split(".")[0] for text, _, _ in ROWS for part in text.split(";")}
    hints = {"prefetchu", "discard", "applypriority"}  # as prefetch
    assert tested | ELSEWHERE | hints == set(TABLE)
