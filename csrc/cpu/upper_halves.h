// Rows of words of which the upper halves are stored, as 16 bits each. GCC packs words by masks and shuffles, for it
// does not know which half is meant, and brings them there in twice the instructions.
#pragma once

#include "core/rounding.h"
#include "cpu/lanes.h"

namespace lrt::cpu {

#if defined(__AVX512F__)
// Those of 32 words.
LRT_HD __m512i upper_halves(__m512i first, __m512i second) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(first, _mm512_load_si512(kUpper), second);
}
LRT_HD __m512i upper_halves(const uint32_t* words) {
  return upper_halves(_mm512_load_si512(words), _mm512_load_si512(words + 16));
}
#elif defined(__AVX2__)
LRT_HD __m256i read_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
LRT_HD void write_256(void* to, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
// 16 words, brought to the nearest numbers that 16 bits can say.
LRT_HD __m256i packed_words(__m256i first, __m256i second) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);  // that packs lanes of 128 bits apart
}
// Those of 16 words.
LRT_HD __m256i upper_halves(__m256i first, __m256i second) {
  return packed_words(_mm256_srai_epi32(first, 16), _mm256_srai_epi32(second, 16));
}
LRT_HD __m256i upper_halves(const uint32_t* words) { return upper_halves(read_256(words), read_256(words + 8)); }
#endif

// A row of which these are the upper halves, in float32.
template <class Isa>
LRT_HD void load_upper_halves(const BFloat16* from, float* reals) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i zeros = _mm256_setzero_si256();
  for (int i = 0; i < kLanes; i += 16) {
    const __m256i halves = _mm256_permute4x64_epi64(read_256(from + i), 0xd8);  // what follows takes lanes apart
    _mm256_store_ps(reals + i, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zeros, halves)));
    _mm256_store_ps(reals + i + 8, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zeros, halves)));
  }
#else
  for (int i = 0; i < kLanes; ++i) reals[i] = to_real(from[i]);
#endif
}

// rounding_bits() of a row's words, by one instruction that multiplies halves and adds them up: by these numbers.
LRT_HD int rounding_factors(int row, uint32_t multiplier) {
  return static_cast<int>(row % 2 ? 1u << 16 | multiplier : multiplier << 16 | 1u);
}
#if defined(__AVX512F__)
LRT_HD __m512i rounding_bits(const uint32_t* words, __m512i factors) {
  return _mm512_and_si512(_mm512_madd_epi16(_mm512_load_si512(words), factors), _mm512_set1_epi32(0xffff));
}
#elif defined(__AVX2__)
LRT_HD __m256i rounding_bits(const uint32_t* words, __m256i factors) {
  return _mm256_and_si256(_mm256_madd_epi16(read_256(words), factors), _mm256_set1_epi32(0xffff));
}
#endif
template <class Isa>
LRT_HD void rounding_row(const uint32_t* words, int row, uint32_t multiplier, uint32_t* bits) {
  [[maybe_unused]] const int factors = rounding_factors(row, multiplier);
#if defined(__AVX512F__)
  for (int i = 0; i < kLanes; i += 16) {
    _mm512_store_si512(bits + i, rounding_bits(words + i, _mm512_set1_epi32(factors)));
  }
#elif defined(__AVX2__)
  for (int i = 0; i < kLanes; i += 8) {
    write_256(bits + i, rounding_bits(words + i, _mm256_set1_epi32(factors)));
  }
#elif defined(__SSE2__)
  for (int i = 0; i < kLanes; i += 4) {
    const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(words + i));
    const __m128i sums = _mm_madd_epi16(four, _mm_set1_epi32(factors));
    _mm_store_si128(reinterpret_cast<__m128i*>(bits + i), _mm_and_si128(sums, _mm_set1_epi32(0xffff)));
  }
#else
  for (int i = 0; i < kLanes; ++i) bits[i] = rounding_bits(rounding_word(words[i], row), multiplier);
#endif
}

// Those of a whole row.
template <class Isa, class Narrow>
LRT_HD void store_upper_halves(const uint32_t* words, Narrow* to) {
#if defined(__AVX512F__)
  for (int i = 0; i < kLanes; i += 32) _mm512_storeu_si512(to + i, upper_halves(words + i));
#elif defined(__AVX2__)
  for (int i = 0; i < kLanes; i += 16) write_256(to + i, upper_halves(words + i));
#else
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<Narrow>(static_cast<uint16_t>(words[i] >> 16));
#endif
}

// Row `row` of a tile in bfloat16, in the upper halves of `rounded`; stochastically by its words.
template <class Isa, bool kStochastic>
LRT_HD const uint32_t* rounded_row(const float* reals, int row, const uint32_t* words, uint32_t multiplier,
                                   uint32_t* rounded) {
  alignas(64) uint32_t bits[kLanes];
  if (kStochastic) rounding_row<Isa>(words, row, multiplier, bits);
  for (int i = 0; i < kLanes; ++i) {
    rounded[i] =
        kStochastic ? stochastically_rounded_to_upper_half(reals[i], bits[i]) : rounded_to_upper_half(reals[i]);
  }
  return rounded;
}

// The same, stochastically, stored.
template <class Isa>
__attribute__((noinline)) void store_any_rounded_row(const float* reals, int row, const uint32_t* words,
                                                     uint32_t multiplier, BFloat16* to) {
  alignas(64) uint32_t rounded[kLanes];
  store_upper_halves<Isa>(rounded_row<Isa, true>(reals, row, words, multiplier, rounded), to);
}
// One look for two vectors, where each would be looked at before its bits are added; again, of a row that has a NaN.
template <class Isa>
LRT_HD void store_rounded_row(const float* reals, int row, const uint32_t* words, uint32_t multiplier, BFloat16* to) {
#if defined(__AVX512F__)
  const __m512i factors = _mm512_set1_epi32(rounding_factors(row, multiplier));
  const auto sums = [=](int i) __attribute__((always_inline)) {
    return _mm512_add_epi32(_mm512_load_si512(reals + i), rounding_bits(words + i, factors));
  };
  __mmask16 nans = 0;
  for (int i = 0; i < kLanes; i += 32) {
    nans |= _mm512_cmp_ps_mask(_mm512_load_ps(reals + i), _mm512_load_ps(reals + i + 16), _CMP_UNORD_Q);
    _mm512_storeu_si512(to + i, upper_halves(sums(i), sums(i + 16)));
  }
  if (nans == 0) return;
#elif defined(__AVX2__)
  const __m256i factors = _mm256_set1_epi32(rounding_factors(row, multiplier));
  const auto sums = [=](int i) __attribute__((always_inline)) {
    return _mm256_add_epi32(read_256(reals + i), rounding_bits(words + i, factors));
  };
  __m256 nans = _mm256_setzero_ps();
  for (int i = 0; i < kLanes; i += 16) {
    nans = _mm256_or_ps(nans, _mm256_cmp_ps(_mm256_load_ps(reals + i), _mm256_load_ps(reals + i + 8), _CMP_UNORD_Q));
    write_256(to + i, upper_halves(sums(i), sums(i + 8)));
  }
  if (_mm256_testz_ps(nans, nans)) return;
#endif
  store_any_rounded_row<Isa>(reals, row, words, multiplier, to);
}

// Those of a whole row whose elements are kept. Bit i of what is returned: what is stored of element i is other than it
// was.
template <class Isa, class Narrow>
LRT_HD uint64_t store_kept_upper_halves(const uint32_t* words, const int32_t* keeps, Narrow* to) {
  uint64_t changed = 0;
#if defined(__AVX512F__)
  for (int i = 0; i < kLanes; i += 32) {
    const __m512i rounded = upper_halves(words + i), old = _mm512_loadu_si512(to + i);
    const __mmask32 keep = _mm512_kunpackw(_mm512_movepi32_mask(_mm512_loadu_si512(keeps + i + 16)),
                                           _mm512_movepi32_mask(_mm512_loadu_si512(keeps + i)));
    changed |= static_cast<uint64_t>(_mm512_mask_cmpneq_epi16_mask(keep, rounded, old)) << i;
    _mm512_storeu_si512(to + i, _mm512_mask_mov_epi16(old, keep, rounded));
  }
#elif defined(__AVX2__)
  for (int i = 0; i < kLanes; i += 16) {
    const __m256i old = read_256(to + i);
    const __m256i keep = _mm256_srai_epi16(packed_words(read_256(keeps + i), read_256(keeps + i + 8)), 15);
    const __m256i stored = _mm256_blendv_epi8(old, upper_halves(words + i), keep);
    const __m256i same = _mm256_cmpeq_epi16(stored, old);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(same), _mm256_extracti128_si256(same, 1));
    changed |= static_cast<uint64_t>(_mm_movemask_epi8(bytes) ^ 0xffff) << i;
    write_256(to + i, stored);
  }
#else
  alignas(64) int32_t differs[kLanes];
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t old = static_cast<uint32_t>(static_cast<uint16_t>(to[i])) << 16;
    const uint32_t stored = select(keeps[i], words[i], old);
    differs[i] = (stored ^ old) < 0x10000u ? 0 : -1;
    to[i] = static_cast<Narrow>(static_cast<uint16_t>(stored >> 16));
  }
  changed = sign_bits<Isa>(differs);
#endif
  return changed;
}

}  // namespace lrt::cpu
