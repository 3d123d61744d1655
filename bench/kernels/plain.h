// What a kernel is measured against: the same work without a mask, as a compiler vectorises it, and a copy.
#pragma once

#include <cstdint>

namespace lrt::bench {

// Pointers to the first of `count` elements of one tensor.
struct Tensors {
  void* param;
  const void* grad;
  void* states[3];
  int64_t count;
};

using Loop = void (*)(const Tensors&);

// Compiled once per instruction set. The constants are nobody's: what is timed depends on no value.
template <class Isa>
struct Plain {
  static void copy(const Tensors& tensors);  // float32: grad to param
  template <bool kAmsgrad>
  static void adam(const Tensors& tensors);
  static void sgd(const Tensors& tensors);  // with momentum
};

}  // namespace lrt::bench
