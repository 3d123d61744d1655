// SGD along the mean of the last `window` gradients (Lin et al., Learning Rate Dropout, TNNLS 2022, Eq. 10).
// Rule header: ring of gradients, per-step constants, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct AverageSGDHyper {
  int64_t window;
};

// The only state, window_buffer, is a ring: `window` slots of a whole parameter each. The newest gradient goes into
// `slot`, then the mean of the first `filled` slots is taken anew, so that no rounding outlives its gradient.
template <class Real>
struct AverageSGD {
  static constexpr int kStates = 1;
  static constexpr bool kRing = true;
  int64_t slot, filled;

  LRT_HD AverageSGD(const AverageSGDHyper& h, double step)
      : slot((static_cast<int64_t>(step) - 1) % h.window),
        filled(static_cast<int64_t>(step) < h.window ? static_cast<int64_t>(step) : h.window) {}

  // What a slot counts for in the mean of itself and those before it.
  static LRT_HD Real weight(int64_t number) { return Real(1) / static_cast<Real>(number + 1); }

  // The mean of slots 0 .. number from that of slots 0 .. number - 1; exact where all are equal.
  static LRT_HD Real include(Real mean, Real gradient, Real weight) { return mean + (gradient - mean) * weight; }
};

struct AverageSGDRule {
  static constexpr const char* kName = "average_sgd";
  static constexpr Names kStates{"window_buffers"};
  static constexpr Names kHypers{"int window"};
  static constexpr Names kFlags{};
  using Hyper = AverageSGDHyper;
  template <class Real>
  using Kernel = AverageSGD<Real>;
};

}  // namespace lrt
