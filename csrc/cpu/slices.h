// Gradient centralization on the CPU (core/slice_mean.h): means of slices, and tiles of the centralized gradient.
// One translation unit for all instruction sets.
#pragma once

#include <optional>

#include "core/slice_mean.h"
#include "cpu/strided.h"

namespace lrt::cpu {

// A gradient and its slices; without a view it lies contiguously.
struct SlicedGrad {
  const void* grad;
  const StridedView* view;
  Dtype dtype;
  int64_t length;  // of a slice
};

// The means of slices [first, last), to means[first] and on.
void find_means(const SlicedGrad& sliced, int64_t first, int64_t last, double* means);

// Elements [first, first + count) less their slices' means, of which `means[0]` is the first slice's. `grads` points to
// element `first`; `out`, too.
void centre(const SlicedGrad& sliced, const void* grads, int64_t first, int64_t count, const double* means, void* out);

}  // namespace lrt::cpu
