// What one step does to one scalar, whatever the rule: scale, decay, rule, keep.
// CPU and CUDA kernels are load -> update -> store around this function.
#pragma once

#include "core/keep.h"
#include "core/record.h"

namespace lrt {

constexpr int kMaxStates = 3;

// Per-call constants, double on the host; UpdateScalars rounds them once to the compute type.
struct StepScalars {
  double lr, weight_decay, grad_factor;  // grad_factor: grad_weight / grad_scale, negated to maximize
  bool decoupled_weight_decay;
};

// A decay of 0, or of what the compute type rounds to it, is not applied at all (0 * inf would be NaN); selected by
// value because GCC vectorises a select on a comparison, not on a bool.
template <class Real>
struct UpdateScalars {
  Real lr, coupled_decay, decoupled_decay, grad_factor;
  LRT_HD explicit UpdateScalars(const StepScalars& s)
      : lr(static_cast<Real>(s.lr)),
        coupled_decay(static_cast<Real>(s.decoupled_weight_decay ? 0.0 : s.weight_decay)),
        decoupled_decay(static_cast<Real>(s.decoupled_weight_decay ? s.weight_decay : 0.0)),
        grad_factor(static_cast<Real>(s.grad_factor)) {}
};

template <class Real>
LRT_HD Decay decay_of(const UpdateScalars<Real>& s) {
  return s.coupled_decay != 0 ? Decay::kCoupled : s.decoupled_decay != 0 ? Decay::kDecoupled : Decay::kNone;
}

// The gradient that a rule sees: scaled, with coupled weight decay.
template <Decay kDecay, class Real>
LRT_HD Real decayed_grad(const UpdateScalars<Real>& scalars, Real param, Real grad) {
  grad = grad * scalars.grad_factor;
  if (kDecay == Decay::kCoupled || (kDecay == Decay::kSelect && scalars.coupled_decay != 0)) {
    grad = grad + scalars.coupled_decay * param;
  }
  return grad;
}

// The parameter that a rule's direction leads to, with decoupled weight decay.
template <Decay kDecay, class Real>
LRT_HD Real moved_param(const UpdateScalars<Real>& scalars, Real param, Real direction) {
  if (kDecay == Decay::kDecoupled || (kDecay == Decay::kSelect && scalars.decoupled_decay != 0)) {
    direction = direction + scalars.decoupled_decay * param;
  }
  return param - scalars.lr * direction;
}

// The parameter an update would give; the states advance in place, kept or not. The caller stores
// the result only where the keep decision holds.
template <Decay kDecay, class Rule, class Real>
LRT_HD Real update(const Rule& rule, const UpdateScalars<Real>& scalars, Real param, Real grad, Real* states) {
  grad = decayed_grad<kDecay>(scalars, param, grad);
  return moved_param<kDecay>(scalars, param, rule.direction(grad, states));
}

// Rules whose one state is a ring: several slots of a whole parameter each, one behind the other. Instead of a
// direction they say which slot the gradient goes to, and how the slots are averaged (rules/average_sgd.h).
template <class Rule>
constexpr bool kHasRing = requires { Rule::kRing; };

}  // namespace lrt
