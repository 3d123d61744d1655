// AverageSGD kernels.
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {

const char* launch_average_sgd(const Step& step, const AverageSGDHyper& hyper) {
  return launch<AverageSGD>(step, hyper);
}

}  // namespace lrt::cuda
