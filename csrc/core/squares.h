// Squared norms of gradients, of which clipping to a global norm is made. The squares of a gradient's elements are
// summed in the order of core/slope.h as far as its chunks; then, of each tensor by itself, in kSlopeColumns columns of
// every so many-th of its chunks, and last the columns. So a tensor's number does not depend on what it is listed with.
// The squared norms of all tensors, in the order of the parameters, are summed in such columns, too.
#pragma once

#include "core/arguments.h"
#include "core/slope.h"

namespace lrt {

template <class Real>
LRT_HD Real square_term(Real grad) {
  return grad * grad;
}

LRT_HD int64_t chunks_of(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// The columns that so many numbers have.
LRT_HD int64_t columns_of(int64_t count) { return count < kSlopeColumns ? count : kSlopeColumns; }

// torch.nn.utils.clip_grad_norm_: the norm of the unscaled gradients, and the factor that takes it to max_norm at most.
struct Clip {
  double norm, clip;
};
LRT_HD Clip clip_of(double squared_norm, double grad_scale, double max_norm) {
  const double norm = sqrt_rn(squared_norm) * (1.0 / grad_scale);
  const double clip = max_norm / (norm + 1e-6);
  return {norm, clip > 1.0 ? 1.0 : clip};  // a NaN stays one
}

}  // namespace lrt
