// Philox blocks side by side, whose counters differ in their first word alone: what is the same for all is found once.
#pragma once

#include "core/philox.h"

namespace lrt::cpu {

// What they have in common: of the first round the words 0 and 1, of the second the word 3; and what the others are
// XORed with.
struct PhiloxCommon {
  uint32_t first_c2;    // of the first round
  uint32_t c0, c2, c3;  // of the second
  uint32_t key0, key1;  // of the third

  LRT_HD PhiloxCommon(const uint32_t (&others)[3], uint32_t key0, uint32_t key1)
      : key0(key0 + 2 * kPhiloxW0), key1(key1 + 2 * kPhiloxW1) {
    const auto first = philox4x32<1>(PhiloxBlock<uint32_t>{{0, others[0], others[1], others[2]}}, key0, key1);
    const auto second = philox4x32<1>(first, key0 + kPhiloxW0, key1 + kPhiloxW1);
    first_c2 = first.word[2];
    c0 = first.word[1] ^ (key0 + kPhiloxW0);
    c2 = second.word[2];
    c3 = second.word[3];
  }

  // The block of a counter, by the high and low half of its first word times kPhiloxM0.
  template <int Rounds, class Word>
  LRT_HD PhiloxBlock<Word> block(Word hi0, Word lo0) const {
    static_assert(Rounds >= 2);
    Word hi1, lo1;
    mul_hi_lo(hi0 ^ Word(first_c2), kPhiloxM1, hi1, lo1);
    const PhiloxBlock<Word> second = {{hi1 ^ Word(c0), lo1, lo0 ^ Word(c2), Word(c3)}};
    return philox4x32<Rounds - 2>(second, key0, key1);
  }
  template <int Rounds>
  LRT_HD PhiloxBlock<uint32_t> block(uint32_t first_word) const {
    uint32_t hi0, lo0;
    mul_hi_lo(first_word, kPhiloxM0, hi0, lo0);
    return block<Rounds>(hi0, lo0);
  }
};

}  // namespace lrt::cpu
