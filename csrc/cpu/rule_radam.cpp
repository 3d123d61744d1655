// RAdam kernels of one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/kernels.h"
#include "rules/radam.h"

namespace lrt::cpu {

template <>
StepKernel find_radam<LRT_ISA>(Dtype param, Dtype state) {
  return kernel_for<LRT_ISA, RAdam, RAdamHyper>(param, state);
}

}  // namespace lrt::cpu
