// Tensors that are stored otherwise than kernels step them (lrtricks_fused/step/staged.py): a row at a time becomes
// float32 in buffers that stay in the first cache, is stepped there, and is stored again.
#pragma once

#include "core/index_map.h"
#include "core/rounding.h"
#include "core/sums.h"
#include "cpu/lanes.h"

namespace lrt::cpu {

// How one tensor is stored. What is float32 in memory is stepped there.
struct Stage {
  Dtype param, grad, state;
  void* mirror;  // of a float32 parameter, or null
  Dtype mirror_dtype;
  int16_t* low;      // completes a BFloat16 parameter to its master, or null
  uint8_t* changes;  // a bit per element, or null
  bool stochastic, stochastic_states;
  const IndexMap* map;  // of a shard whose elements are not those of tiles, or null
};

inline bool is_narrow(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kHalf; }

// visit(pointer) with elements of 16 bits from `element` on, as the type that they have.
template <class Visit>
LRT_HD void with_narrow(Dtype dtype, void* base, int64_t element, const Visit& visit) {
  if (dtype == Dtype::kBFloat16) {
    visit(static_cast<BFloat16*>(base) + element);
  } else {
    visit(static_cast<Half*>(base) + element);
  }
}

// Where a row is in float32: in memory, or in a buffer that it is brought to.
LRT_HD float* real_row(Dtype dtype, void* base, int64_t element, int count, float* buffer) {
  if (!is_narrow(dtype)) return static_cast<float*>(base) + element;
  with_narrow(dtype, base, element, [=](const auto* from) {
    for (int i = 0; i < count; ++i) buffer[i] = to_real(from[i]);
  });
  return buffer;
}

LRT_HD void join_row(const BFloat16* high, const int16_t* low, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = joined(high[i], low[i]);
}

// The bits that round a row, of whose tile all words are there; of a shard's row each element's are drawn alone.
LRT_HD void row_of_words(const TileWords& words, int row, uint32_t* bits) {
  for (int lane = 0; lane < kLanes; ++lane) bits[lane] = row_bits(words.word[row / 2][lane], row);
}
inline void draw_row(const KeepStream& key, Stream stream, const IndexMap& map, int64_t first, int count,
                     uint32_t* bits) {
  for (int i = 0; i < count; ++i) bits[i] = keep_bits<kRoundingRounds>(key, map.element(first + i), stream);
}

// A row of 16 bits from float32: all of it, to nearest or by `bits` where these are given.
template <class Storage>
LRT_HD void round_row(const float* from, const uint32_t* bits, int count, Storage* to) {
  if (bits) {
    for (int i = 0; i < count; ++i) to[i] = stochastically_rounded<Storage>(from[i], bits[i]);
  } else {
    for (int i = 0; i < count; ++i) to[i] = from_real<Storage>(from[i]);
  }
}

// The same of the elements that are kept; the signs of `changed`, if it is given, say of which the bits are others now.
template <class Storage>
LRT_HD void round_kept_row(const float* from, const uint32_t* bits, const int32_t* keeps, int count, Storage* to,
                           int32_t* changed) {
  Storage rounded[kLanes];
  round_row(from, bits, count, rounded);
  if (changed) {
    for (int i = 0; i < count; ++i) changed[i] = keeps[i] < 0 && rounded[i] != to[i] ? -1 : 0;
  }
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) to[i] = keeps[i] < 0 ? rounded[i] : to[i];
}

LRT_HD void split_kept_row(const float* from, const int32_t* keeps, int count, BFloat16* high, int16_t* low,
                           int32_t* changed) {
  BFloat16 halves[kLanes];
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    const Split own = split(from[i]);
    halves[i] = own.high;
    low[i] = keeps[i] < 0 ? own.low : low[i];
  }
  if (changed) {
    for (int i = 0; i < count; ++i) changed[i] = keeps[i] < 0 && halves[i] != high[i] ? -1 : 0;
  }
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) high[i] = keeps[i] < 0 ? halves[i] : high[i];
}

LRT_HD void compare_row(const float* before, const float* after, int count, int32_t* changed) {
  for (int i = 0; i < count; ++i) changed[i] = same_bits(before[i], after[i]) ? 0 : -1;
}

// Adds a row to the bits of what has changed.
template <class Isa>
LRT_HD void mark_row(const int32_t* changed, int64_t element, int count, uint8_t* bitmap) {
  uint64_t bits = sign_bits<Isa>(changed);
  if (count < kLanes) bits &= (uint64_t{1} << count) - 1;
  uint8_t* const bytes = bitmap + element / 8;
  for (int b = 0; b < (count + 7) / 8; ++b) bytes[b] |= static_cast<uint8_t>(bits >> (8 * b));
}

}  // namespace lrt::cpu
