// CPU entry of the squared norms of gradients (core/squares.h): torch tensors in, numbers out.
#pragma once

#include <vector>

#include "operands.h"

namespace lrt::cpu {

// squares[i] becomes the squared norm of grads[i], of any layout.
void squared_norms(std::vector<Tensor> grads, Tensor squares);

// norm and clip become what core/squares.h says of all gradients. Of `squares` the last kSlopeColumns are scratch.
void write_clip(Tensor squares, Tensor norm, Tensor clip, std::optional<Tensor> grad_scale, double max_norm);

// squared_norms of the gradients of a table's rows. What follows is of devices.
void table_squared_norms(Tensor table, Tensor squares, std::optional<Tensor> chunk_tensors,
                         std::optional<Tensor> scratch, int64_t param_dtype);

}  // namespace lrt::cpu
