// Philox4x32 (Salmon et al., SC 2011), the counter-based generator behind every random decision.
// Word is uint32_t, or a SIMD type with mul_hi_lo() and operator^ (cpu/lanes.h).
#pragma once

#include "core/numeric.h"

namespace lrt {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 7;  // the fewest that pass BigCrush

template <class Word>
struct PhiloxBlock {
  Word word[4];
};

LRT_HD void mul_hi_lo(uint32_t a, uint32_t multiplier, uint32_t& hi, uint32_t& lo) {
  const uint64_t product = static_cast<uint64_t>(a) * multiplier;
  hi = static_cast<uint32_t>(product >> 32);
  lo = static_cast<uint32_t>(product);
}

template <int Rounds, class Word>
LRT_HD PhiloxBlock<Word> philox4x32(PhiloxBlock<Word> counter, uint32_t key0, uint32_t key1) {
  Word c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < Rounds; ++round) {
    Word hi0, lo0, hi1, lo1;
    mul_hi_lo(c0, kPhiloxM0, hi0, lo0);
    mul_hi_lo(c2, kPhiloxM1, hi1, lo1);
    c0 = hi1 ^ (c1 ^ Word(key0));
    c2 = hi0 ^ (c3 ^ Word(key1));
    c1 = lo1;
    c3 = lo0;
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace lrt
