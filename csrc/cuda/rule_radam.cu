// RAdam kernels.
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {

const char* launch_radam(const Step& step, const RAdamHyper& hyper) { return launch<RAdam>(step, hyper); }

}  // namespace lrt::cuda
