// The CPU kernels by rule and variant. Each find_* is specialised once per instruction set in rule_*.cpp;
// null means that the pair of storage types is not offered.
#pragma once

#include "cpu/step_kernel.h"

namespace lrt::cpu {

template <class Isa>
StepKernel find_sgd(bool momentum, bool nesterov, Dtype param, Dtype state);
template <class Isa>
StepKernel find_adam(bool amsgrad, Dtype param, Dtype state);
template <class Isa>
StepKernel find_rmsprop(bool centered, bool momentum, Dtype param, Dtype state);
template <class Isa>
StepKernel find_radam(Dtype param, Dtype state);
template <class Isa>
StepKernel find_adabelief(Dtype param, Dtype state);
template <class Isa>
StepKernel find_average_sgd(Dtype param, Dtype state);

// Calls visit with the tag of the instruction set in use.
template <class Visit>
auto with_active_isa(const Visit& visit) {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kAvx512: return visit(Avx512{});
    case Isa::kAvx2: return visit(Avx2{});
    case Isa::kBaseline: break;
  }
#else
  active_isa();
#endif
  return visit(Baseline{});
}

}  // namespace lrt::cpu
