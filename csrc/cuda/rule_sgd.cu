// SGD kernels.
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {
namespace {
template <class Real>
using Plain = SGD<Real, false, false>;
template <class Real>
using Momentum = SGD<Real, true, false>;
template <class Real>
using Nesterov = SGD<Real, true, true>;
}  // namespace

const char* launch_sgd(const Step& step, const SGDHyper& hyper, bool momentum, bool nesterov) {
  if (!momentum) return launch<Plain>(step, hyper);
  return nesterov ? launch<Nesterov>(step, hyper) : launch<Momentum>(step, hyper);
}

}  // namespace lrt::cuda
