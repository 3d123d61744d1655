// Adam, AdamW, AMSGrad kernels of one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/kernels.h"
#include "rules/adam.h"

namespace lrt::cpu {
namespace {
template <class Real>
using Plain = Adam<Real, false>;
template <class Real>
using Amsgrad = Adam<Real, true>;
}  // namespace

template <>
StepKernel find_adam<LRT_ISA>(bool amsgrad, Dtype param, Dtype state) {
  return amsgrad ? kernel_for<LRT_ISA, Amsgrad, AdamHyper>(param, state)
                 : kernel_for<LRT_ISA, Plain, AdamHyper>(param, state);
}

}  // namespace lrt::cpu
