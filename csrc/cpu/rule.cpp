// All kernels of one rule for one instruction set, both named by the build: -DLRT_RULE=AdamRule
// -DLRT_RULE_HEADER="rules/adam.h" -DLRT_ISA=Avx512.
#include LRT_RULE_HEADER
#include "cpu/kernels.h"
#include "cpu/rule_kernels.h"

namespace lrt::cpu {

template <class Isa, class Record>
StepKernel find(const Flags<Record>& flags, Dtype param, Dtype state) {
  return with_variant(flags, [&]<class Variant>() { return kernel_for<Isa, Variant>(param, state); });
}
template StepKernel find<LRT_ISA, LRT_RULE>(const Flags<LRT_RULE>&, Dtype, Dtype);

}  // namespace lrt::cpu
