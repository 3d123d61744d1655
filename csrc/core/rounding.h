// How float32 becomes what is stored, besides rounding to nearest (core/dtype.h): stochastic rounding, by the words
// that are drawn for the keep decisions, and split masters. lrtricks_fused/step/rounding.py says the same of tensors.
#pragma once

#include "core/dtype.h"
#include "core/keep.h"
#include "core/update.h"

namespace lrt {

// The word that an element of `row` shares with another, its own half on top.
LRT_HD uint32_t rounding_word(uint32_t word, int row) {
  const uint32_t turned = row % 2 ? 0 : 16;
  return word << turned | word >> (-turned & 31);
}
// Of it 16 bits for the parameter, and for each state: its own number plus an odd multiple of the other one, below
// which nothing carries. Uniform whether the element is kept or not, and any two as good as independent.
constexpr uint32_t kParamMultiplier = 0x4ab5u, kStateMultipliers[kMaxStates] = {0x352bu, 0x4f9bu, 0x3dadu};
LRT_HD uint32_t rounding_bits(uint32_t x, uint32_t multiplier) { return x * (multiplier << 16 | 1u) >> 16; }

// Up or down by 16 uniform bits; right on average, exactly but for subnormal Half, whose cut is rounded to 2**-16 ulp.
template <class Storage>
LRT_HD Storage stochastically_rounded(float x, uint32_t bits);

// In the upper half of a word, as rounded_to_upper_half(); what is in the lower half is of no meaning.
LRT_HD uint32_t stochastically_rounded_to_upper_half(float x, uint32_t bits) {
  return x != x ? 0x7fc00000u : bit_cast<uint32_t>(x) + bits;
}
template <>
LRT_HD BFloat16 stochastically_rounded<BFloat16>(float x, uint32_t bits) {
  return static_cast<BFloat16>(static_cast<uint16_t>(stochastically_rounded_to_upper_half(x, bits) >> 16));
}

template <>
LRT_HD Half stochastically_rounded<Half>(float x, uint32_t bits) {
  constexpr float kMin = 0x1p-14f, kUnits = 0x1p40f;  // the smallest normal Half; of 2**-16 of the smallest subnormal
  const uint32_t word = bit_cast<uint32_t>(x), sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
  const uint32_t moved = (magnitude + (bits >> 3) - ((127u - 15u) << 23)) >> 13;
  const uint32_t normal = moved < 0x7c00u ? moved : 0x7c00u;
  const float absolute = bit_cast<float>(magnitude), small = absolute < kMin ? absolute : kMin;
  const uint32_t subnormal = (static_cast<uint32_t>(static_cast<int32_t>(small * kUnits)) + bits) >> 16;
  const uint32_t rounded = absolute < kMin ? subnormal : normal;
  return static_cast<Half>(static_cast<uint16_t>(x != x ? 0x7e00u : rounded | sign));
}

// bits(master) = (high << 16) + low: the master in BFloat16, rounded half away from zero, and what completes it. Ties
// go one way, or two masters would have one `low`. A NaN is quiet in both, and may lose a bit of its payload.
struct Split {
  BFloat16 high;
  int16_t low;
};
// The same in the upper halves of words; what is in the lower half of `high` is of no meaning.
struct SplitWords {
  uint32_t high, low;
};
LRT_HD SplitWords split_words(float master) {
  const uint32_t bits = bit_cast<uint32_t>(master);
  const uint32_t word = (bits & 0x7fffffffu) >= 0x7fff8000u ? bits & 0xffff7fffu : bits;
  return {word + 0x8000u, word << 16};
}
LRT_HD Split split(float master) {
  const SplitWords words = split_words(master);
  return {static_cast<BFloat16>(static_cast<uint16_t>(words.high >> 16)),
          static_cast<int16_t>(static_cast<uint16_t>(words.low >> 16))};
}
LRT_HD float joined(BFloat16 high, int16_t low) {
  return bit_cast<float>((static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}

}  // namespace lrt
