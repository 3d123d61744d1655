// RMSprop kernels.
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {
namespace {
template <class Real>
using Plain = RMSprop<Real, false, false>;
template <class Real>
using Momentum = RMSprop<Real, false, true>;
template <class Real>
using Centered = RMSprop<Real, true, false>;
template <class Real>
using CenteredMomentum = RMSprop<Real, true, true>;
}  // namespace

const char* launch_rmsprop(const Step& step, const RMSpropHyper& hyper, bool centered, bool momentum) {
  if (centered) return momentum ? launch<CenteredMomentum>(step, hyper) : launch<Centered>(step, hyper);
  return momentum ? launch<Momentum>(step, hyper) : launch<Plain>(step, hyper);
}

}  // namespace lrt::cuda
