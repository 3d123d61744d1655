// AverageSGD kernels of one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/kernels.h"
#include "rules/average_sgd.h"

namespace lrt::cpu {

template <>
StepKernel find_average_sgd<LRT_ISA>(Dtype param, Dtype state) {
  return kernel_for<LRT_ISA, AverageSGD, AverageSGDHyper>(param, state);
}

}  // namespace lrt::cpu
