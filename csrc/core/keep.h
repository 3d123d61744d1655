// The keep decision, frozen as version 1: a pure function of (seed, step, parameter, element).
// Element i draws 16 bits: tile = i/512, row = i/64%8, lane = i%64, call n = tile*64 + lane.
#pragma once

#include "core/philox.h"

namespace lrt {

constexpr int64_t kLanes = 64;         // consecutive elements that use consecutive counters
constexpr int64_t kTile = 8 * kLanes;  // elements served by one row of 64 Philox calls
constexpr uint32_t kKeepAll = 65536;   // a threshold no 16-bit draw reaches
enum class Stream : uint32_t { kElement = 0, kBlock = 1, kScalar = 3 };

// What distinguishes one parameter's draws of one step from all others.
struct KeepStream {
  uint64_t seed;
  uint32_t step;
  uint32_t param;
};

// keep iff bits < threshold; 0 keeps none, 1 keeps all, everything between keeps some.
LRT_HD uint32_t keep_threshold(double keep_prob) {
  if (!(keep_prob > 0)) return 0;
  if (keep_prob >= 1) return kKeepAll;
  const double scaled = keep_prob * 65536.0;                                  // exact: a power of two
  const double rounded = (scaled + 4503599627370496.0) - 4503599627370496.0;  // rint, 2**52
  return static_cast<uint32_t>(rounded < 1 ? 1 : rounded > 65535 ? 65535 : rounded);
}

// Whether a threshold leaves anything to draw.
LRT_HD bool is_masked(uint32_t threshold) { return threshold != 0 && threshold != kKeepAll; }

LRT_HD uint32_t counter_high(uint64_t n, Stream stream) {
  return static_cast<uint32_t>(n >> 32) | (static_cast<uint32_t>(stream) << 24);
}

LRT_HD PhiloxBlock<uint32_t> draw(const KeepStream& key, uint64_t n, Stream stream) {
  const PhiloxBlock<uint32_t> counter = {{static_cast<uint32_t>(n), counter_high(n, stream), key.step, key.param}};
  return philox4x32<kPhiloxRounds>(counter, static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
}

// The 16 bits of `row` in the Philox word that holds them (word row / 2).
LRT_HD uint32_t row_bits(uint32_t word, int row) { return (word >> (16 * (row % 2))) & 0xffffu; }

// The Philox word of which an element has its bits, and the row that says which half of it they are.
struct ElementWord {
  uint32_t word;
  int row;
};
LRT_HD ElementWord element_word(const KeepStream& key, int64_t element) {
  const int64_t tile = element / kTile, lane = element % kLanes;
  const int row = static_cast<int>(element / kLanes % 8);
  const auto block = draw(key, tile * kLanes + lane, Stream::kElement);
  // Selects: on a GPU an index that is not known at compile time would put the block into memory.
  const uint32_t lower = row < 2 ? block.word[0] : block.word[1], upper = row < 6 ? block.word[2] : block.word[3];
  return {row < 4 ? lower : upper, row};
}

LRT_HD uint32_t keep_bits(const KeepStream& key, int64_t element) {
  const auto [word, row] = element_word(key, element);
  return row_bits(word, row);
}

}  // namespace lrt
