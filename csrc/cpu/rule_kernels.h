// The kernels of one rule: a variant's for each pair of storage types.
#pragma once

#include "core/pairs.h"
#include "core/record.h"
#include "cpu/ring_kernel.h"
#include "cpu/step_kernel.h"

namespace lrt::cpu {

template <class Isa, class Rule, class Hyper, class Param, class State>
constexpr StepKernel instance() {
  if constexpr (kHasRing<Rule>) {
    return ring_kernel<Isa, Rule, Hyper, Param, State>;
  } else {
    return step_kernel<Isa, Rule, Hyper, Param, State>;
  }
}

// The kernel of a rule's variant for a pair of storage types; null where the pair is not offered.
template <class Isa, class Variant>
StepKernel kernel_for(Dtype param, Dtype state) {
  return with_pair<StepKernel>(param, state, nullptr, []<class Param, class State>() {
    return instance<Isa, typename Variant::template Rule<Real<Param>>, typename Variant::Hyper, Param, State>();
  });
}

}  // namespace lrt::cpu
