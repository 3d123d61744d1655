// Gradient centralization on the CPU (core/slice_mean.h): means of slices, and runs of the centralized gradient.
#pragma once

#include <optional>

#include "core/slice_mean.h"
#include "cpu/isa.h"
#include "cpu/strided.h"

namespace lrt::cpu {

// A gradient and its slices; without a view it lies contiguously.
struct SlicedGrad {
  const void* grad;
  const StridedView* view;
  Dtype dtype;
  int64_t length;  // of a slice
};

// Compiled once per instruction set.
struct SliceFunctions {
  // The means of slices [first, last).
  void (*find_means)(const SlicedGrad& sliced, int64_t first, int64_t last, double* means);
  // `count` elements from element `first` on less their slices' means, of which `means` holds these slices' only.
  // `grads` and `out` point to the first of these elements.
  void (*centralize)(const SlicedGrad& sliced, const void* grads, int64_t first, int64_t count, const double* means,
                     void* out);
};

template <class Isa>
const SliceFunctions& slice_functions();

}  // namespace lrt::cpu
