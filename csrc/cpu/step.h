// CPU entry of each rule: checks one decoded call, then runs it. Errors come before anything is written.
#pragma once

#include "ops.h"
#include "rules/adabelief.h"
#include "rules/adam.h"
#include "rules/average_sgd.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace lrt::cpu {

// Raises where a step of these rows would: what a list's own call would find too late, after another list was stepped.
void check_table(Tensor table);

void step_sgd(ListCall& call, const SGDHyper& hyper, bool nesterov);
void step_adam(ListCall& call, const AdamHyper& hyper);
void step_rmsprop(ListCall& call, const RMSpropHyper& hyper);
void step_radam(ListCall& call, const RAdamHyper& hyper);
void step_adabelief(ListCall& call, const AdaBeliefHyper& hyper);
void step_average_sgd(ListCall& call, const AverageSGDHyper& hyper);

}  // namespace lrt::cpu
