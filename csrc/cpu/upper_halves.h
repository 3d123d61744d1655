// Rows of words of which the upper halves are stored, as 16 bits each. GCC packs words by masks and shuffles, for it
// does not know which half is meant.
#pragma once

#include "core/rounding.h"
#include "cpu/lanes.h"

namespace lrt::cpu {

#if defined(__AVX512F__)
// Those of 32 words.
LRT_HD __m512i upper_halves(const uint32_t* words) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_load_si512(words), _mm512_load_si512(kUpper), _mm512_load_si512(words + 16));
}
#elif defined(__AVX2__)
LRT_HD __m256i read_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
// 16 words, brought to the nearest numbers that 16 bits can say.
LRT_HD __m256i packed_words(__m256i first, __m256i second) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);  // that packs lanes of 128 bits apart
}
// Those of 16 words.
LRT_HD __m256i upper_halves(const uint32_t* words) {
  return packed_words(_mm256_srai_epi32(read_256(words), 16), _mm256_srai_epi32(read_256(words + 8), 16));
}
#endif

// rounding_bits() of a row's words, by one instruction that multiplies halves and adds them up.
template <class Isa>
LRT_HD void rounding_row(const uint32_t* words, int row, uint32_t multiplier, uint32_t* bits) {
  [[maybe_unused]] const auto factors = static_cast<int>(row % 2 ? 1u << 16 | multiplier : multiplier << 16 | 1u);
#if defined(__AVX512F__)
  for (int i = 0; i < kLanes; i += 16) {
    const __m512i sums = _mm512_madd_epi16(_mm512_load_si512(words + i), _mm512_set1_epi32(factors));
    _mm512_store_si512(bits + i, _mm512_and_si512(sums, _mm512_set1_epi32(0xffff)));
  }
#elif defined(__AVX2__)
  for (int i = 0; i < kLanes; i += 8) {
    const __m256i sums = _mm256_madd_epi16(read_256(words + i), _mm256_set1_epi32(factors));
    _mm256_store_si256(reinterpret_cast<__m256i*>(bits + i), _mm256_and_si256(sums, _mm256_set1_epi32(0xffff)));
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
  for (int i = 0; i < kLanes; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), upper_halves(words + i));
  }
#else
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<Narrow>(static_cast<uint16_t>(words[i] >> 16));
#endif
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
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), stored);
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
