// AdaBelief kernels.
#include "cuda/step_kernel.cuh"

namespace lrt::cuda {

const char* launch_adabelief(const Step& step, const AdaBeliefHyper& hyper) { return launch<AdaBelief>(step, hyper); }

}  // namespace lrt::cuda
