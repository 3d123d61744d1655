// All kernels of one rule, named by the build: -DLRT_RULE=AdamRule -DLRT_RULE_HEADER="rules/adam.h".
#include LRT_RULE_HEADER
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {

template <class Record>
const char* launch(const Step& step, const typename Record::Hyper& hyper, const Flags<Record>& flags) {
  return with_variant(flags, [&]<class Variant>() { return launch_variant<Variant>(step, hyper); });
}
template const char* launch<LRT_RULE>(const Step&, const LRT_RULE::Hyper&, const Flags<LRT_RULE>&);

}  // namespace lrt::cuda
