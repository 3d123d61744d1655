// Adam, AdamW, AMSGrad (Kingma & Ba 2015; Reddi et al. 2018), eps after the bias correction as torch.optim.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

struct AdamHyper {
  double beta1, beta2, eps;
};

template <class Real, bool kAmsgrad>
struct Adam {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  Real beta1, one_minus_beta1, beta2, one_minus_beta2, eps, inv_bias_correction1, inv_sqrt_bias_correction2;

  LRT_HD Adam(const AdamHyper& h, double step)
      : beta1(static_cast<Real>(h.beta1)),
        one_minus_beta1(static_cast<Real>(1.0 - h.beta1)),
        beta2(static_cast<Real>(h.beta2)),
        one_minus_beta2(static_cast<Real>(1.0 - h.beta2)),
        eps(static_cast<Real>(h.eps)),
        inv_bias_correction1(static_cast<Real>(1.0 / (1.0 - int_pow(h.beta1, step)))),
        inv_sqrt_bias_correction2(static_cast<Real>(1.0 / sqrt_rn(1.0 - int_pow(h.beta2, step)))) {}

  LRT_HD Real direction(Real grad, Real* state) const {
    Real &exp_avg = state[0], &exp_avg_sq = state[1];
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad);
    Real second_moment = exp_avg_sq;
    if constexpr (kAmsgrad) second_moment = state[2] = running_maximum(state[2], exp_avg_sq);  // max_exp_avg_sq
    const Real denom = sqrt_rn(second_moment) * inv_sqrt_bias_correction2 + eps;
    return (exp_avg * inv_bias_correction1) / denom;
  }
};

struct AdamRule {
  static constexpr const char* kName = "adam";
  static constexpr Names kStates{"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"};
  static constexpr Names kHypers{"float beta1", "float beta2", "float eps"};
  static constexpr Names kFlags{"max_exp_avg_sqs"};
  using Hyper = AdamHyper;
  template <class Real, bool... kFlag>
  using Kernel = Adam<Real, kFlag...>;
};

}  // namespace lrt
