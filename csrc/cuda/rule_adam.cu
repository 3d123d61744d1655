// Adam, AdamW, AMSGrad kernels.
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {
namespace {
template <class Real>
using Plain = Adam<Real, false>;
template <class Real>
using Amsgrad = Adam<Real, true>;
}  // namespace

const char* launch_adam(const Step& step, const AdamHyper& hyper, bool amsgrad) {
  return amsgrad ? launch<Amsgrad>(step, hyper) : launch<Plain>(step, hyper);
}

}  // namespace lrt::cuda
