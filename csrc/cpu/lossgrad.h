// The CPU entry of LOSSGRAD's decision: one op for what would be dozens of torch's.
#pragma once

#include "tensors.h"

namespace lrt::cpu {

// Writes r, and multiplies every lr by the factor of core/lossgrad.h. All are scalars, float32 or float64, on the CPU.
void adapt_lrs(Tensor loss, Tensor trial, Tensor slope, Tensor ratio, std::vector<Tensor> lrs, double c,
               double resolution);

}  // namespace lrt::cpu
