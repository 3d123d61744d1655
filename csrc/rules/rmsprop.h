// RMSprop (Tieleman & Hinton 2012), centered and with momentum; eps outside the root as torch.optim.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct RMSpropHyper {
  double alpha, eps, momentum;
};

template <class Real, bool kCentered, bool kMomentum>
struct RMSprop {
  static constexpr int kStates = 1 + kCentered + kMomentum;
  static constexpr Decay kOnlyDecay = Decay::kCoupled;
  Real alpha, one_minus_alpha, eps, momentum;

  LRT_HD RMSprop(const RMSpropHyper& h, double /*step*/)
      : alpha(static_cast<Real>(h.alpha)),
        one_minus_alpha(static_cast<Real>(1.0 - h.alpha)),
        eps(static_cast<Real>(h.eps)),
        momentum(static_cast<Real>(h.momentum)) {}

  LRT_HD Real direction(Real grad, Real* state) const {
    Real& square_avg = state[0];
    square_avg = alpha * square_avg + one_minus_alpha * (grad * grad);
    Real variance = square_avg;
    if constexpr (kCentered) {
      Real& grad_avg = state[1];
      grad_avg = alpha * grad_avg + one_minus_alpha * grad;
      variance = square_avg - grad_avg * grad_avg;
    }
    const Real update = grad / (sqrt_rn(variance) + eps);
    if constexpr (!kMomentum) return update;
    Real& momentum_buffer = state[kStates - 1];
    momentum_buffer = momentum * momentum_buffer + update;
    return momentum_buffer;
  }
};

struct RMSpropRule {
  static constexpr const char* kName = "rmsprop";
  static constexpr Names kStates{"square_avgs", "grad_avgs", "momentum_buffers"};
  static constexpr Names kHypers{"float alpha", "float eps", "float momentum"};
  static constexpr Names kFlags{"grad_avgs", "momentum_buffers"};
  using Hyper = RMSpropHyper;
  template <class Real, bool... kFlag>
  using Kernel = RMSprop<Real, kFlag...>;
};

}  // namespace lrt
