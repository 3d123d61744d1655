// SGD kernels of one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/kernels.h"
#include "rules/sgd.h"

namespace lrt::cpu {
namespace {
template <class Real>
using Plain = SGD<Real, false, false>;
template <class Real>
using Momentum = SGD<Real, true, false>;
template <class Real>
using Nesterov = SGD<Real, true, true>;
}  // namespace

template <>
StepKernel find_sgd<LRT_ISA>(bool momentum, bool nesterov, Dtype param, Dtype state) {
  if (!momentum) return kernel_for<LRT_ISA, Plain, SGDHyper>(param, state);
  return nesterov ? kernel_for<LRT_ISA, Nesterov, SGDHyper>(param, state)
                  : kernel_for<LRT_ISA, Momentum, SGDHyper>(param, state);
}

}  // namespace lrt::cpu
