// Units of neighbouring elements in registers, of storage types that are known when the kernel runs: a switch stands
// around whole units. Every unit begins at a multiple of its length, where it is one byte of a bitmap.
#pragma once

#include "core/rounding.h"
#include "cuda/access.cuh"

namespace lrt::cuda {

constexpr int kUnit = 8;  // elements: of 16 bits one access

// visit.operator()<Storage>() with the type of that code, which is not double.
template <class Visit>
LRT_DEVICE void with_storage(Dtype dtype, const Visit& visit) {
  if (dtype == Dtype::kBFloat16) {
    visit.template operator()<BFloat16>();
  } else if (dtype == Dtype::kHalf) {
    visit.template operator()<Half>();
  } else {
    visit.template operator()<float>();
  }
}

// The elements as they lie in memory: those of 16 bits two in a word.
struct Unit {
  uint32_t word[kUnit] = {};

  template <class Storage>
  __device__ __forceinline__ Storage element(int e) const {
    if constexpr (sizeof(Storage) == 4) {
      return bit_cast<Storage>(word[e]);
    } else {
      return static_cast<Storage>(static_cast<uint16_t>(word[e / 2] >> (16 * (e % 2))));
    }
  }
  template <class Storage>
  __device__ __forceinline__ void put(int e, Storage element) {
    if constexpr (sizeof(Storage) == 4) {
      word[e] = bit_cast<uint32_t>(element);
    } else {
      const uint32_t others = word[e / 2] & (e % 2 ? 0x0000ffffu : 0xffff0000u);
      word[e / 2] = others | static_cast<uint32_t>(element) << (16 * (e % 2));
    }
  }
};

// Elements of Word's size. kWide: all of them are there, at an address that allows the widest accesses; else that is
// looked at, and they are moved one by one where it is not so.
template <bool kWide, class Word>
LRT_DEVICE Unit load_words_of(int64_t base, int64_t begin, int count) {
  Unit unit;
  if (kWide || (count == kUnit && base % kAccess == 0)) {
    const auto whole = AlignedAccess::load<Word, kUnit>(base, begin);
    memcpy(unit.word, &whole, sizeof(whole));
  } else {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      if (e < count) unit.put(e, load_piece<Word, 1>(base, begin + e).value[0]);
    }
  }
  return unit;
}
template <bool kWide, class Word>
LRT_DEVICE void store_words_of(int64_t base, int64_t begin, int count, const Unit& unit) {
  if (kWide || (count == kUnit && base % kAccess == 0)) {
    Vector<Word, kUnit> whole;
    memcpy(&whole, unit.word, sizeof(whole));
    AlignedAccess::store(base, begin, whole);
  } else {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      if (e < count) store_piece<Word, 1>(base, begin + e, {unit.element<Word>(e)});
    }
  }
}

template <bool kWide>
LRT_DEVICE Unit load_unit(bool narrow, int64_t base, int64_t begin, int count) {
  return narrow ? load_words_of<kWide, uint16_t>(base, begin, count)
                : load_words_of<kWide, uint32_t>(base, begin, count);
}
template <bool kWide>
LRT_DEVICE void store_unit(bool narrow, int64_t base, int64_t begin, int count, const Unit& unit) {
  if (narrow) {
    store_words_of<kWide, uint16_t>(base, begin, count, unit);
  } else {
    store_words_of<kWide, uint32_t>(base, begin, count, unit);
  }
}

LRT_DEVICE void to_reals(Dtype dtype, const Unit& unit, float* reals) {
  with_storage(dtype, [&]<class Storage>() {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) reals[e] = to_real(unit.element<Storage>(e));
  });
}

// To nearest, or stochastically by the words that core/rounding.h has for the elements.
template <class Storage>
LRT_DEVICE Unit rounded(const float* reals, bool stochastic, const uint32_t* words, uint32_t multiplier) {
  Unit unit;
  if constexpr (sizeof(Storage) == 2) {
    if (stochastic) {
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        unit.put(e, stochastically_rounded<Storage>(reals[e], rounding_bits(words[e], multiplier)));
      }
      return unit;
    }
  }
#pragma unroll
  for (int e = 0; e < kUnit; ++e) unit.put(e, from_real<Storage>(reals[e]));
  return unit;
}

// Puts the new elements that are kept into the unit; returns in which bits they differ from those before.
template <class Storage>
LRT_DEVICE Unit take_kept(Unit& unit, const Unit& updated, uint32_t keeps) {
  constexpr int kOfWord = 4 / static_cast<int>(sizeof(Storage));
  Unit difference;
#pragma unroll
  for (int w = 0; w < kUnit / kOfWord; ++w) {
    uint32_t kept = keeps >> w & 1 ? ~0u : 0u;
    if constexpr (kOfWord == 2) {
      const uint32_t pair = keeps >> (2 * w);
      kept = ((pair & 1) | (pair & 2) << 15) * 0xffffu;
    }
    difference.word[w] = (unit.word[w] ^ updated.word[w]) & kept;
    unit.word[w] = unit.word[w] ^ difference.word[w];
  }
  return difference;
}

// Which elements differ.
LRT_DEVICE uint32_t elements_of(bool narrow, const Unit& difference) {
  uint32_t elements = 0;
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    const bool differs = narrow ? difference.element<uint16_t>(e) != 0 : difference.word[e] != 0;
    elements |= static_cast<uint32_t>(differs) << e;
  }
  return elements;
}

}  // namespace lrt::cuda
