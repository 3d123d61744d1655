// What a step is told besides its operands and its rule's own numbers; the same struct from the ops to the kernels.
#pragma once

#include "core/update.h"

namespace lrt {

// A number, or one float32 or float64 in memory that the kernels can read, which is read when they run.
struct Scalar {
  double value = 0;
  const void* address = nullptr;  // null: the number
  bool is_double = false;

  LRT_HD double read() const {
    if (!address) return value;
    return is_double ? *static_cast<const double*>(address) : *static_cast<const float*>(address);
  }
};

struct StepArguments {
  Scalar lr, keep_prob, grad_weight, grad_scale, found_inf;
  Scalar clip;  // of the gradients of all calls of a step to their global norm; 1 where they are not
  double weight_decay;
  bool decoupled_weight_decay, maximize;
  uint64_t seed;

  LRT_HD StepScalars scalars() const {
    const double factor = inverse_grad_scale() * clip.read() * grad_weight.read();
    return {lr.read(), weight_decay, maximize ? -factor : factor, decoupled_weight_decay};
  }
  LRT_HD double inverse_grad_scale() const { return 1.0 / grad_scale.read(); }
  LRT_HD bool skips() const { return found_inf.read() != 0; }
};

}  // namespace lrt
