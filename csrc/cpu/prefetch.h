// Hints to the processor about memory that will be read.
#pragma once

#include <cstdint>

namespace lrt::cpu {

// Whether a row of elements asks for lines of memory ahead of it, and how: into the first cache, into the second, or
// into the first, to be written. Which one is fast depends on the processor (prefetch_policy() in isa.h); none changes
// a bit.
enum class Hint : uint8_t { kNone, kFirst, kSecond, kWrite };
struct Prefetch {
  Hint hint = Hint::kNone;
  int32_t bytes = 0;       // ahead, in every operand
  int64_t grad_bytes = 0;  // ahead in the gradient, where that is another number
};

template <Hint kHint>
inline __attribute__((always_inline)) void ask(const void* address) {
  if constexpr (kHint == Hint::kFirst) __builtin_prefetch(address, 0, 3);
  if constexpr (kHint == Hint::kSecond) __builtin_prefetch(address, 0, 2);
  if constexpr (kHint == Hint::kWrite) __builtin_prefetch(address, 1, 3);
}

// Asks for all lines of so many bytes.
template <Hint kHint>
inline __attribute__((always_inline)) void ask_lines(const void* begin, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) ask<kHint>(static_cast<const char*>(begin) + b);
}

}  // namespace lrt::cpu
