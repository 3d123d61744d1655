// CUDA entry of each rule: a call over a table of device addresses, checked, to the launchers of step.h.
#pragma once

#include "ops.h"
#include "rules/adabelief.h"
#include "rules/adam.h"
#include "rules/average_sgd.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace lrt::cuda {

void step_sgd(ListCall& call, const SGDHyper& hyper, bool nesterov);
void step_adam(ListCall& call, const AdamHyper& hyper);
void step_rmsprop(ListCall& call, const RMSpropHyper& hyper);
void step_radam(ListCall& call, const RAdamHyper& hyper);
void step_adabelief(ListCall& call, const AdaBeliefHyper& hyper);
void step_average_sgd(ListCall& call, const AverageSGDHyper& hyper);

// Copies int64 words from the CPU to the device of `target`, in stream order (see upload.h).
void upload_words(Tensor target, Tensor words);

}  // namespace lrt::cuda
