// AdaBelief (Zhuang et al. 2020, arXiv 2010.07468, Algorithm 2): eps inside the average and outside the root.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct AdaBeliefHyper {
  double beta1, beta2, eps;
};

template <class Real>
struct AdaBelief {
  static constexpr int kStates = 2;
  Real beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_bias_correction1, inv_sqrt_bias_correction2;

  LRT_HD AdaBelief(const AdaBeliefHyper& h, double step)
      : beta1(static_cast<Real>(h.beta1)),
        one_minus_beta1(static_cast<Real>(1.0 - h.beta1)),
        beta2(static_cast<Real>(h.beta2)),
        one_minus_beta2(static_cast<Real>(1.0 - h.beta2)),
        eps(static_cast<Real>(h.eps)),
        inv_bias_correction1(static_cast<Real>(1.0 / (1.0 - int_pow(h.beta1, step)))),
        inv_sqrt_bias_correction2(static_cast<Real>(1.0 / sqrt_rn(1.0 - int_pow(h.beta2, step)))) {}

  LRT_HD Real direction(Real grad, Real* state) const {
    Real &exp_avg = state[0], &exp_avg_var = state[1];
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    const Real surprise = grad - exp_avg;
    exp_avg_var = beta2 * exp_avg_var + one_minus_beta2 * (surprise * surprise) + eps;
    const Real denom = sqrt_rn(exp_avg_var) * inv_sqrt_bias_correction2 + eps;
    return (exp_avg * inv_bias_correction1) / denom;
  }
};

struct AdaBeliefRule {
  static constexpr const char* kName = "adabelief";
  static constexpr Names kStates{"exp_avgs", "exp_avg_vars"};
  static constexpr Names kHypers{"float beta1", "float beta2", "float eps"};
  static constexpr Names kFlags{};
  using Hyper = AdaBeliefHyper;
  template <class Real>
  using Kernel = AdaBelief<Real>;
};

}  // namespace lrt
