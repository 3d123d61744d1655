// What is stored of a row of elements that was stepped in float32: the formulas by which stage.cpp stores a tile out of
// buffers, and stored_kernel.h a row out of registers.
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

// Adds a row to the bits of what has changed: the signs of `changed`, of `count` elements.
template <class Isa>
LRT_HD void mark_row(const int32_t* changed, int64_t element, int count, uint8_t* bitmap) {
  uint64_t bits = sign_bits<Isa>(changed);
  uint8_t* const bytes = bitmap + element / 8;
  if (count == kLanes) {
    uint64_t marked;
    std::memcpy(&marked, bytes, sizeof(marked));
    marked |= bits;
    std::memcpy(bytes, &marked, sizeof(marked));
    return;
  }
  bits &= (uint64_t{1} << count) - 1;
  for (int b = 0; b < (count + 7) / 8; ++b) bytes[b] |= static_cast<uint8_t>(bits >> (8 * b));
}

}  // namespace lrt::cpu
