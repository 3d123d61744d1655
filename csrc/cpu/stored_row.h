// What is stored of a row of elements that was stepped in float32.
#pragma once

#include <cstring>

#include "core/rounding.h"
#include "cpu/lanes.h"

namespace lrt::cpu {

// 16 bits: `rounded` where the element is kept, else what is there.
template <class Narrow>
LRT_HD Narrow kept_bits(int32_t keep, Narrow rounded, Narrow old) {
  return static_cast<Narrow>(
      static_cast<uint16_t>(select(keep, static_cast<uint16_t>(rounded), static_cast<uint16_t>(old))));
}

// Adds a row, or a part of one, to the bits of what has changed.
LRT_HD void mark_row(uint64_t changed, int64_t element, int count, uint8_t* bitmap) {
  uint8_t* const bytes = bitmap + element / 8;
  if (count == kLanes) {
    uint64_t marked;
    std::memcpy(&marked, bytes, sizeof(marked));
    marked |= changed;
    std::memcpy(bytes, &marked, sizeof(marked));
    return;
  }
  changed &= (uint64_t{1} << count) - 1;
  for (int b = 0; b < (count + 7) / 8; ++b) bytes[b] |= static_cast<uint8_t>(changed >> (8 * b));
}

}  // namespace lrt::cpu
