// Lion (Chen et al. 2023, arXiv 2302.06675, Algorithm 2): the sign of an interpolation of momentum and gradient.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct LionHyper {
  double beta1, beta2;
};

template <class Real>
struct Lion {
  static constexpr int kStates = 1;
  static constexpr Decay kOnlyDecay = Decay::kDecoupled;
  Real beta1, one_minus_beta1, beta2, one_minus_beta2;

  LRT_HD Lion(const LionHyper& h, double /*step*/)
      : beta1(static_cast<Real>(h.beta1)),
        one_minus_beta1(static_cast<Real>(1.0 - h.beta1)),
        beta2(static_cast<Real>(h.beta2)),
        one_minus_beta2(static_cast<Real>(1.0 - h.beta2)) {}

  LRT_HD Real direction(Real grad, Real* state) const {
    Real& exp_avg = state[0];
    const Real update = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg = beta2 * exp_avg + one_minus_beta2 * grad;
    return update > 0 ? Real(1) : update < 0 ? Real(-1) : update;  // a NaN stays one
  }
};

struct LionRule {
  static constexpr const char* kName = "lion";
  static constexpr Names kStates{"exp_avgs"};
  static constexpr Names kHypers{"float beta1", "float beta2"};
  static constexpr Names kFlags{};
  using Hyper = LionHyper;
  template <class Real>
  using Kernel = Lion<Real>;
};

}  // namespace lrt
