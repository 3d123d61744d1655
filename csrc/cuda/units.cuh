// Units of neighbouring elements in registers, of storage types that are known when the kernel runs: a switch stands
// around whole units. Every unit begins at a multiple of its length, where it is one byte of a bitmap.
#pragma once

#include "core/rounding.h"
#include "cuda/access.cuh"

namespace lrt::cuda {

constexpr int kUnit = 8;  // elements: of 16 bits one access

LRT_HD bool is_narrow(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kHalf; }

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

// Elements of Word's size. As wide as can be where the address allows and all of them are there, else one by one.
template <class Word>
LRT_DEVICE Unit load_words_of(int64_t base, int64_t begin, int count) {
  Unit unit;
  if (count == kUnit && base % kAccess == 0) {
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
template <class Word>
LRT_DEVICE void store_words_of(int64_t base, int64_t begin, int count, const Unit& unit) {
  if (count == kUnit && base % kAccess == 0) {
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

LRT_DEVICE Unit load_unit(bool narrow, int64_t base, int64_t begin, int count) {
  return narrow ? load_words_of<uint16_t>(base, begin, count) : load_words_of<uint32_t>(base, begin, count);
}
LRT_DEVICE void store_unit(bool narrow, int64_t base, int64_t begin, int count, const Unit& unit) {
  if (narrow) {
    store_words_of<uint16_t>(base, begin, count, unit);
  } else {
    store_words_of<uint32_t>(base, begin, count, unit);
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

// Puts the new elements that are kept into the unit; says of which the bits are others now.
template <class Storage>
LRT_DEVICE uint32_t take_kept(Unit& unit, const Unit& updated, uint32_t keeps) {
  using Word = std::conditional_t<sizeof(Storage) == 4, uint32_t, uint16_t>;
  uint32_t changed = 0;
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    const Word before = unit.element<Word>(e);
    const Word after = keeps >> e & 1 ? updated.element<Word>(e) : before;
    changed |= static_cast<uint32_t>(before != after) << e;
    unit.put(e, after);
  }
  return changed;
}

}  // namespace lrt::cuda
