// SGD with momentum, dampening, Nesterov (torch.optim.SGD); the first step sets the buffer to the gradient.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct SGDHyper {
  double momentum, dampening;
};

template <class Real, bool kMomentum, bool kNesterov>
struct SGD {
  static constexpr int kStates = kMomentum ? 1 : 0;
  static constexpr Decay kOnlyDecay = Decay::kCoupled;
  Real momentum, one_minus_dampening;

  LRT_HD SGD(const SGDHyper& h, double step)
      : momentum(static_cast<Real>(h.momentum)),
        one_minus_dampening(static_cast<Real>(step == 1 ? 1.0 : 1.0 - h.dampening)) {}

  LRT_HD Real direction(Real grad, Real* state) const {
    if constexpr (!kMomentum) return grad;
    Real& momentum_buffer = state[0];
    momentum_buffer = momentum * momentum_buffer + one_minus_dampening * grad;
    return kNesterov ? grad + momentum * momentum_buffer : momentum_buffer;
  }
};

struct SGDRule {
  static constexpr const char* kName = "sgd";
  static constexpr Names kStates{"momentum_buffers"};
  static constexpr Names kHypers{"float momentum", "float dampening"};
  static constexpr Names kFlags{"momentum_buffers", "bool nesterov"};
  using Hyper = SGDHyper;
  template <class Real, bool kMomentum, bool kNesterov>
  struct Chosen {
    using Kernel = SGD<Real, kMomentum, kMomentum && kNesterov>;
  };
  template <class Real, bool... kFlag>
  using Kernel = typename Chosen<Real, kFlag...>::Kernel;
};

}  // namespace lrt
