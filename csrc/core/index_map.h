// Which elements of a whole parameter a shard of it holds, both in row-major order: the keep decisions are those of the
// whole parameter's elements (core/keep.h). lrtricks_fused/step/keep.py says the same.
#pragma once

#include "core/keep.h"

namespace lrt {

// Element i of the shard is element base + i / run * pitch + i % run of the whole.
struct IndexMap {
  int64_t base, run, pitch;  // run 0: the parameter is whole, and all are 0

  LRT_HD bool is_whole() const { return run == 0; }
  LRT_HD int64_t element(int64_t i) const { return base + i / run * pitch + i % run; }
};

constexpr int64_t kMaxElements = int64_t{1} << 59;  // of a whole parameter, whose Philox calls are numbered by 56 bits

// Whether this is a map of a shard of so many elements.
inline bool fits(const IndexMap& map, int64_t numel) {
  if (map.is_whole()) return map.base == 0 && map.pitch == 0;
  if (map.run < 0 || map.base < 0 || map.base > kMaxElements) return false;
  const int64_t last = numel > 0 ? (numel - 1) / map.run : 0;  // the last run's number
  if (last > 0 && (map.pitch < map.run || map.pitch > kMaxElements / last)) return false;
  const int64_t length = map.run < numel ? map.run : numel;
  return length <= kMaxElements && map.base + (last > 0 ? last * map.pitch : 0) + length <= kMaxElements;
}

}  // namespace lrt
