// RMSprop kernels of one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/kernels.h"
#include "rules/rmsprop.h"

namespace lrt::cpu {
namespace {
template <class Real>
using Plain = RMSprop<Real, false, false>;
template <class Real>
using Momentum = RMSprop<Real, false, true>;
template <class Real>
using Centered = RMSprop<Real, true, false>;
template <class Real>
using CenteredMomentum = RMSprop<Real, true, true>;
}  // namespace

template <>
StepKernel find_rmsprop<LRT_ISA>(bool centered, bool momentum, Dtype param, Dtype state) {
  if (centered && momentum) return kernel_for<LRT_ISA, CenteredMomentum, RMSpropHyper>(param, state);
  if (centered) return kernel_for<LRT_ISA, Centered, RMSpropHyper>(param, state);
  return momentum ? kernel_for<LRT_ISA, Momentum, RMSpropHyper>(param, state)
                  : kernel_for<LRT_ISA, Plain, RMSpropHyper>(param, state);
}

}  // namespace lrt::cpu
