// RAdam (Liu et al. 2020): rectified once the variance is tractable (rho_t > 5), momentum alone before.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct RAdamHyper {
  double beta1, beta2, eps;
};

template <class Real>
struct RAdam {
  static constexpr int kStates = 2;
  Real beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_bias_correction1,
      rectification;  // 0: not rectified yet

  LRT_HD RAdam(const RAdamHyper& h, double step)
      : beta1(static_cast<Real>(h.beta1)),
        one_minus_beta1(static_cast<Real>(1.0 - h.beta1)),
        beta2(static_cast<Real>(h.beta2)),
        one_minus_beta2(static_cast<Real>(1.0 - h.beta2)),
        eps(static_cast<Real>(h.eps)),
        inv_bias_correction1(static_cast<Real>(1.0 / (1.0 - int_pow(h.beta1, step)))) {
    const double beta2_t = int_pow(h.beta2, step), bias_correction2 = 1.0 - beta2_t;
    const double rho_inf = 2.0 / (1.0 - h.beta2) - 1.0, rho = rho_inf - 2.0 * step * beta2_t / bias_correction2;
    rectification = static_cast<Real>(rho > 5.0 ? sqrt_rn((rho - 4.0) * (rho - 2.0) * rho_inf * bias_correction2 /
                                                          ((rho_inf - 4.0) * (rho_inf - 2.0) * rho))
                                                : 0.0);
  }

  LRT_HD Real direction(Real grad, Real* state) const {
    Real &exp_avg = state[0], &exp_avg_sq = state[1];
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad);
    const Real update = exp_avg * inv_bias_correction1;
    return rectification != 0 ? update * rectification / (sqrt_rn(exp_avg_sq) + eps) : update;
  }
};

struct RAdamRule {
  static constexpr const char* kName = "radam";
  static constexpr Names kStates{"exp_avgs", "exp_avg_sqs"};
  static constexpr Names kHypers{"float beta1", "float beta2", "float eps"};
  static constexpr Names kFlags{};
  using Hyper = RAdamHyper;
  template <class Real>
  using Kernel = RAdam<Real>;
};

}  // namespace lrt
