// NAdam (Dozat 2016, Incorporating Nesterov Momentum into Adam), the momentum's schedule and eps as torch.optim.
// Rule header: per-step constants, update direction, record. Shared by the CPU and CUDA kernels.
#pragma once

#include "core/record.h"

namespace lrt {

// `decay` is 0.96 ** momentum_decay, found once on the host: a power of a fraction is not the same bits everywhere.
struct NAdamHyper {
  double beta1, beta2, eps, decay;

  // The momentum of a step: beta1 * (1 - 0.96 ** (step * momentum_decay) / 2).
  LRT_HD double momentum(double step) const { return beta1 * (1.0 - 0.5 * int_pow(decay, step)); }

  // The product of the momenta up to a step, from that before it.
  LRT_HD double advance(double step, double mu_product) const { return mu_product * momentum(step); }
};

template <class Real>
struct NAdam {
  static constexpr int kStates = 2;
  Real beta1, one_minus_beta1, beta2, one_minus_beta2, eps, grad_factor, exp_avg_factor;

  // Numerator and denominator of the direction are both multiplied by the root of the second bias correction.
  LRT_HD NAdam(const NAdamHyper& h, double step, double mu_product)
      : beta1(static_cast<Real>(h.beta1)),
        one_minus_beta1(static_cast<Real>(1.0 - h.beta1)),
        beta2(static_cast<Real>(h.beta2)),
        one_minus_beta2(static_cast<Real>(1.0 - h.beta2)) {
    const double root = sqrt_rn(1.0 - int_pow(h.beta2, step)), next = h.momentum(step + 1.0);
    eps = static_cast<Real>(h.eps * root);
    grad_factor = static_cast<Real>((1.0 - h.momentum(step)) / (1.0 - mu_product) * root);
    exp_avg_factor = static_cast<Real>(next / (1.0 - mu_product * next) * root);
  }

  LRT_HD Real direction(Real grad, Real* state) const {
    Real &exp_avg = state[0], &exp_avg_sq = state[1];
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad);
    return (grad_factor * grad + exp_avg_factor * exp_avg) / (sqrt_rn(exp_avg_sq) + eps);
  }
};

struct NAdamRule {
  static constexpr const char* kName = "nadam";
  static constexpr Names kStates{"exp_avgs", "exp_avg_sqs"};
  static constexpr const char* kScalar = "mu_products";
  static constexpr Names kHypers{"float beta1", "float beta2", "float eps", "float decay"};
  static constexpr Names kFlags{};
  using Hyper = NAdamHyper;
  template <class Real>
  using Kernel = NAdam<Real>;
};

}  // namespace lrt
