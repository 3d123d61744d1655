// 64 consecutive Philox calls and their keep decisions at once, per instruction set. Words stay in the low half of
// 64-bit lanes, because the widening multiply reads only that half; even and odd calls then interleave into 32-bit
// lanes in order.
#pragma once

#include <cstring>

#include "core/keep.h"
#include "cpu/isa.h"
#include "cpu/philox_common.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace lrt::cpu {

// Decisions of one tile: the sign bit of row[r][lane] is set where the element is kept. As signs, for a blend
// takes them as they are, and two draws of a word are compared at once.
struct TileKeeps {
  alignas(64) int32_t row[8][kLanes];
};

// What is not a template over the instruction set has the namespace of its own: what -O3 inlines is a function at -O0,
// and those of two instruction sets must not have one name.
#if defined(__AVX512F__)
#define LRT_LANES lanes_avx512
inline namespace LRT_LANES {
struct Wide {
  __m512i v;
  Wide() = default;
  LRT_HD explicit Wide(__m512i x) : v(x) {}
  LRT_HD explicit Wide(uint32_t x) : v(_mm512_set1_epi64(x)) {}
  static constexpr int kCalls = 8;
  // The numbers of every second call, first, first + 2, ..., times a factor.
  static LRT_HD Wide products(uint64_t first, uint64_t factor) {
    const __m512i steps = _mm512_mul_epu32(_mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), _mm512_set1_epi64(factor));
    return Wide(_mm512_add_epi64(_mm512_set1_epi64(first * factor), steps));
  }
};
LRT_HD Wide operator^(Wide a, Wide b) { return Wide(_mm512_xor_si512(a.v, b.v)); }
LRT_HD Wide high_half(Wide a) { return Wide(_mm512_shuffle_epi32(a.v, _MM_PERM_DDBB)); }
LRT_HD void mul_hi_lo(Wide a, uint32_t multiplier, Wide& hi, Wide& lo) {
  lo = Wide(_mm512_mul_epu32(a.v, _mm512_set1_epi64(multiplier)));
  hi = high_half(lo);
}
LRT_HD __m512i words_of(Wide even, Wide odd) {
  return _mm512_mask_blend_epi32(0xaaaa, even.v, _mm512_slli_epi64(odd.v, 32));
}
LRT_HD void store_words(uint32_t* words, Wide even, Wide odd) { _mm512_store_si512(words, words_of(even, odd)); }
LRT_HD void store_keeps(int32_t* low, int32_t* high, Wide even, Wide odd, uint32_t threshold) {
  const __m512i words = words_of(even, odd);
  const __m512i keeps = _mm512_movm_epi16(_mm512_cmplt_epu16_mask(words, _mm512_set1_epi16(threshold)));
  _mm512_store_si512(low, _mm512_slli_epi32(keeps, 16));
  _mm512_store_si512(high, keeps);
}
}  // namespace LRT_LANES
#elif defined(__AVX2__)
#define LRT_LANES lanes_avx2
inline namespace LRT_LANES {
struct Wide {
  __m256i v;
  Wide() = default;
  LRT_HD explicit Wide(__m256i x) : v(x) {}
  LRT_HD explicit Wide(uint32_t x) : v(_mm256_set1_epi64x(x)) {}
  static constexpr int kCalls = 4;
  static LRT_HD Wide products(uint64_t first, uint64_t factor) {
    const __m256i steps = _mm256_mul_epu32(_mm256_set_epi64x(6, 4, 2, 0), _mm256_set1_epi64x(factor));
    return Wide(_mm256_add_epi64(_mm256_set1_epi64x(first * factor), steps));
  }
};
LRT_HD Wide operator^(Wide a, Wide b) { return Wide(_mm256_xor_si256(a.v, b.v)); }
LRT_HD Wide high_half(Wide a) { return Wide(_mm256_shuffle_epi32(a.v, 0xf5)); }
LRT_HD void mul_hi_lo(Wide a, uint32_t multiplier, Wide& hi, Wide& lo) {
  lo = Wide(_mm256_mul_epu32(a.v, _mm256_set1_epi64x(multiplier)));
  hi = high_half(lo);
}
LRT_HD __m256i words_of(Wide even, Wide odd) { return _mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa); }
LRT_HD void store_words(uint32_t* words, Wide even, Wide odd) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), words_of(even, odd));
}
LRT_HD void store_keeps(int32_t* low, int32_t* high, Wide even, Wide odd, uint32_t threshold) {
  const __m256i words = words_of(even, odd);
  // Unsigned words < threshold, for a threshold of at least 1.
  const __m256i keeps = _mm256_cmpeq_epi16(words, _mm256_min_epu16(words, _mm256_set1_epi16(threshold - 1)));
  _mm256_store_si256(reinterpret_cast<__m256i*>(low), _mm256_slli_epi32(keeps, 16));
  _mm256_store_si256(reinterpret_cast<__m256i*>(high), keeps);
}
}  // namespace LRT_LANES
#endif

#if defined(__AVX512F__) || defined(__AVX2__)
constexpr int kPiece = 2 * Wide::kCalls;  // Philox calls drawn at a time
#else
constexpr int kPiece = 8;
#endif
// Rows that are stepped between draws, which in all of a tile's draw all of the next; the harness tries others.
#ifndef LRT_ROWS_BETWEEN_DRAWS
#define LRT_ROWS_BETWEEN_DRAWS 1
#endif
constexpr int kRowsBetweenDraws = LRT_ROWS_BETWEEN_DRAWS > kPiece / 8 ? LRT_ROWS_BETWEEN_DRAWS : kPiece / 8;
static_assert(8 % kRowsBetweenDraws == 0 && 8 * kRowsBetweenDraws % kPiece == 0);

// What the calls of one tile have in common.
LRT_HD PhiloxCommon common_of(const KeepStream& key, int64_t tile) {
  const uint32_t high = counter_high(static_cast<uint64_t>(tile) * kLanes, Stream::kElement);
  const uint32_t others[] = {high, key.step, key.param};
  return {others, static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)};
}

#if defined(__AVX512F__) || defined(__AVX2__)
inline namespace LRT_LANES {
// Calls [lane, lane + kPiece) of one tile, every second of them from the first on, and from the second on.
struct Piece {
  PhiloxBlock<Wide> even, odd;
};
LRT_HD Piece piece_of(const KeepStream& key, int64_t tile, int lane) {
  const PhiloxCommon common = common_of(key, tile);
  const uint32_t first = static_cast<uint32_t>(tile * kLanes + lane);
  const auto every_second = [&](uint32_t n) {
    const Wide product = Wide::products(n, kPhiloxM0);
    return common.block<kPhiloxRounds>(high_half(product), product);
  };
  return {every_second(first), every_second(first + 1)};
}
}  // namespace LRT_LANES
#endif

// The words of all calls of one tile: row r has the bits of half r % 2 of word r / 2.
struct TileWords {
  alignas(64) uint32_t word[4][kLanes];
};

// What calls [lane, lane + kPiece) of one tile give: the decisions by 0 < threshold < kKeepAll, and the words
// themselves, each if there is a place for them.
template <class Isa>
LRT_HD void draw_piece(const KeepStream& stream, uint32_t threshold, int64_t tile, int lane, TileKeeps* keeps,
                       TileWords* words) {
#if defined(__AVX512F__) || defined(__AVX2__)
  const auto [even, odd] = piece_of(stream, tile, lane);
  for (int w = 0; keeps && w < 4; ++w) {
    store_keeps(&keeps->row[2 * w][lane], &keeps->row[2 * w + 1][lane], even.word[w], odd.word[w], threshold);
  }
  for (int w = 0; words && w < 4; ++w) store_words(&words->word[w][lane], even.word[w], odd.word[w]);
#else
  const PhiloxCommon common = common_of(stream, tile);
  for (int call = lane; call < lane + kPiece; ++call) {
    const auto block = common.block<kPhiloxRounds>(static_cast<uint32_t>(tile * kLanes + call));
    for (int r = 0; keeps && r < 8; ++r) keeps->row[r][call] = row_bits(block.word[r / 2], r) < threshold ? -1 : 0;
    for (int w = 0; words && w < 4; ++w) words->word[w][call] = block.word[w];
  }
#endif
}
template <class Isa>
LRT_HD void draw_piece(const KeepStream& stream, uint32_t threshold, int64_t tile, int lane, TileKeeps& keeps) {
  draw_piece<Isa>(stream, threshold, tile, lane, &keeps, nullptr);
}

// Bit i is the sign of the i-th of 64 numbers.
template <class Isa>
LRT_HD uint64_t sign_bits(const int32_t* signs) {
  uint64_t bits = 0;
#if defined(__AVX512F__)
  for (int i = 0; i < 64; i += 16) {
    bits |= static_cast<uint64_t>(_mm512_movepi32_mask(_mm512_loadu_si512(signs + i))) << i;
  }
#elif defined(__AVX2__)
  for (int i = 0; i < 64; i += 8) {
    const __m256 eight = _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(signs + i)));
    bits |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(eight))) << i;
  }
#else
  for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(signs[i] < 0) << i;
#endif
  return bits;
}

// One of two words by a sign; in bits, because GCC would entangle a condition with those that rounding has.
LRT_HD uint32_t select(int32_t sign, uint32_t if_negative, uint32_t otherwise) {
  const uint32_t mask = static_cast<uint32_t>(sign >> 31);
  return (if_negative & mask) | (otherwise & ~mask);
}

// All decisions of one tile, drawn or not.
template <class Isa>
__attribute__((noinline)) void decide_tile(const KeepStream& stream, uint32_t threshold, int64_t tile,
                                           TileKeeps& keeps) {
  if (!is_masked(threshold)) {
    std::memset(&keeps, threshold == 0 ? 0 : -1, sizeof(keeps));
    return;
  }
  for (int lane = 0; lane < kLanes; lane += kPiece) draw_piece<Isa>(stream, threshold, tile, lane, keeps);
}

}  // namespace lrt::cpu
