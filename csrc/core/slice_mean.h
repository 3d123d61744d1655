// Gradient centralization (Yong et al., Gradient Centralization, ECCV 2020): of a parameter of more than one dimension,
// every slice of the gradient (all elements of one index of dimension 0) loses its mean before the step.
//
// The mean is summed in one order on every backend: of n partial sums, sum k takes elements k, k + n, k + 2n, ... of
// the slice in the compute type; the partials are added up in double, and their sum is divided there and rounded once.
#pragma once

#include "core/dtype.h"
#include "core/slope.h"

namespace lrt {

constexpr int64_t kPartialElements = 64, kSlicePartials = 16, kMaxSlicePartials = 4096;

// Partial sums of a slice: one if it is short, else a multiple of kSlicePartials with kPartialElements each, as far as
// that goes.
LRT_HD int64_t slice_partials(int64_t length) {
  if (length < kPartialElements) return 1;
  const int64_t partials =
      (length + kPartialElements * kSlicePartials - 1) / (kPartialElements * kSlicePartials) * kSlicePartials;
  return partials < kMaxSlicePartials ? partials : kMaxSlicePartials;
}

template <class Real>
LRT_HD Real slice_mean(const Real* partials, int64_t length) {
  return static_cast<Real>(slope_sum(partials, slice_partials(length)) / static_cast<double>(length));
}

// An element of the centralized gradient, as it would be stored.
template <class Param>
LRT_HD Param centralized(Param grad, Real<Param> mean) {
  return from_real<Param>(to_real(grad) - mean);
}

}  // namespace lrt
