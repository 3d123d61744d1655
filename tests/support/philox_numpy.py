"""Philox4x32 and the keep bits a second time, in numpy uint64, one element at a time in the words of the design.

Written from Salmon et al. (SC 2011, section 3.3) and design section 4; shares nothing with lrtricks_fused.step.keep.
"""

import numpy

MASK32 = numpy.uint64(0xFFFFFFFF)
HALF = numpy.uint64(32)


def philox4x32(counter, key, rounds):
    """Four words of the generator; ``counter`` has four and ``key`` two numbers (or arrays) below 2**32."""
    x = [numpy.asarray(word, dtype=numpy.uint64) for word in counter]
    k = [int(word) for word in key]
    for _ in range(rounds):
        left, right = x[0] * numpy.uint64(0xD2511F53), x[2] * numpy.uint64(0xCD9E8D57)
        x = [
            (right >> HALF) ^ x[1] ^ numpy.uint64(k[0]),
            right & MASK32,
            (left >> HALF) ^ x[3] ^ numpy.uint64(k[1]),
            left & MASK32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def keep_bits(elements, seed, step, param):
    """The 16 bits of each element index, as the formula of design section 4 reads."""
    i = numpy.asarray(elements, dtype=numpy.uint64)
    tile, row, lane = i // numpy.uint64(512), i // numpy.uint64(64) % numpy.uint64(8), i % numpy.uint64(64)
    n = tile * numpy.uint64(64) + lane
    words = philox4x32((n & MASK32, n >> HALF, step % 2**32, param), (seed % 2**32, seed >> 32), 7)
    word = numpy.choose((row // numpy.uint64(2)).astype(int), numpy.broadcast_arrays(*words))
    return (word >> (numpy.uint64(16) * (row % numpy.uint64(2)))) & numpy.uint64(0xFFFF)
