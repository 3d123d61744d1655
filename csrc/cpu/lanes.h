// 64 consecutive Philox calls at once, per instruction set. Words stay in the low half of 64-bit lanes, because
// the widening multiply reads only that half; even and odd calls then interleave into 32-bit lanes in order.
#pragma once

#include "core/keep.h"
#include "cpu/isa.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lrt::cpu {

// word[w][lane]: word w of the call for `lane` of one tile.
struct TileWords {
  alignas(64) uint32_t word[4][kLanes];
};

#if defined(__AVX512F__)
struct Wide {
  __m512i v;
  Wide() = default;
  LRT_HD explicit Wide(__m512i x) : v(x) {}
  LRT_HD explicit Wide(uint32_t x) : v(_mm512_set1_epi64(x)) {}
  static constexpr int kCalls = 8;
  static LRT_HD Wide counters(uint32_t first) {  // every second call: first, first + 2, ...
    return Wide(_mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0)));
  }
};
LRT_HD Wide operator^(Wide a, Wide b) { return Wide(_mm512_xor_si512(a.v, b.v)); }
LRT_HD void mul_hi_lo(Wide a, uint32_t multiplier, Wide& hi, Wide& lo) {
  lo = Wide(_mm512_mul_epu32(a.v, _mm512_set1_epi64(multiplier)));
  hi = Wide(_mm512_shuffle_epi32(lo.v, _MM_PERM_DDBB));
}
LRT_HD void store_interleaved(uint32_t* to, Wide even, Wide odd) {
  _mm512_store_si512(to, _mm512_mask_blend_epi32(0xaaaa, even.v, _mm512_slli_epi64(odd.v, 32)));
}
#elif defined(__AVX2__)
struct Wide {
  __m256i v;
  Wide() = default;
  LRT_HD explicit Wide(__m256i x) : v(x) {}
  LRT_HD explicit Wide(uint32_t x) : v(_mm256_set1_epi64x(x)) {}
  static constexpr int kCalls = 4;
  static LRT_HD Wide counters(uint32_t first) {
    return Wide(_mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_set_epi64x(6, 4, 2, 0)));
  }
};
LRT_HD Wide operator^(Wide a, Wide b) { return Wide(_mm256_xor_si256(a.v, b.v)); }
LRT_HD void mul_hi_lo(Wide a, uint32_t multiplier, Wide& hi, Wide& lo) {
  lo = Wide(_mm256_mul_epu32(a.v, _mm256_set1_epi64x(multiplier)));
  hi = Wide(_mm256_shuffle_epi32(lo.v, 0xf5));
}
LRT_HD void store_interleaved(uint32_t* to, Wide even, Wide odd) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to),
                     _mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa));
}
#endif

#if defined(__AVX512F__) || defined(__AVX2__)
constexpr int kPiece = 2 * Wide::kCalls;  // Philox calls drawn at a time
#else
constexpr int kPiece = 8;
#endif

// Calls [lane, lane + kPiece) of one tile.
template <class Isa>
LRT_HD void draw_piece(const KeepStream& key, int64_t tile, int lane, TileWords& words) {
  const uint64_t first = static_cast<uint64_t>(tile) * kLanes;
#if defined(__AVX512F__) || defined(__AVX2__)
  const uint32_t key0 = static_cast<uint32_t>(key.seed), key1 = static_cast<uint32_t>(key.seed >> 32);
  const Wide high(counter_high(first, Stream::kElement)), step(key.step), param(key.param);
  const uint32_t n = static_cast<uint32_t>(first) + lane;
  const auto even = philox4x32<kPhiloxRounds>(PhiloxBlock<Wide>{{Wide::counters(n), high, step, param}}, key0, key1);
  const auto odd = philox4x32<kPhiloxRounds>(PhiloxBlock<Wide>{{Wide::counters(n + 1), high, step, param}}, key0, key1);
  for (int w = 0; w < 4; ++w) store_interleaved(&words.word[w][lane], even.word[w], odd.word[w]);
#else
  for (int call = lane; call < lane + kPiece; ++call) {
    const auto block = draw(key, first + call, Stream::kElement);
    for (int w = 0; w < 4; ++w) words.word[w][call] = block.word[w];
  }
#endif
}

template <class Isa>
LRT_HD void draw_tile(const KeepStream& key, int64_t tile, TileWords& words) {
  for (int lane = 0; lane < kLanes; lane += kPiece) draw_piece<Isa>(key, tile, lane, words);
}

}  // namespace lrt::cpu
