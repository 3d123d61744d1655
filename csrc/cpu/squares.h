// Squared norms of gradients on the CPU (core/squares.h): no torch in here.
#pragma once

#include <vector>

#include "core/dtype.h"
#include "cpu/strided.h"

namespace lrt::cpu {

// A gradient; without a view it lies contiguously.
struct Gradient {
  const void* grad;
  const StridedView* view;
  Dtype dtype;
  int64_t numel;
};

// The sums of its tiles [first, last), to `sums`. Compiled once per instruction set.
using SquareTiles = void (*)(const Gradient& gradient, int64_t first, int64_t last, double* sums);
template <class Isa>
void square_tiles(const Gradient& gradient, int64_t first, int64_t last, double* sums);

}  // namespace lrt::cpu
