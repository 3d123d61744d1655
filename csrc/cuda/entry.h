// CUDA entry of every rule: a step over a table of device addresses, checked, to the launchers of step.h.
#pragma once

#include <functional>

#include "cuda/step.h"
#include "operands.h"

namespace lrt::cuda {

// Checks the operands, and launches what `launch` says of it; that returns the error's text, or null.
void run(const Operands& operands, const StepArguments& arguments,
         const std::function<const char*(const Step&)>& launch);

template <class Record>
void step(const Operands& operands, const StepArguments& arguments, const typename Record::Hyper& hyper,
          const Flags<Record>& flags) {
  run(operands, arguments, [&](const Step& step) { return launch<Record>(step, hyper, flags); });
}

// Copies int64 words from the CPU to the device of `target`, which is contiguous or one column of a table, in stream
// order (see upload.h).
void upload_words(Tensor target, Tensor words);

// squares[i] becomes the squared norm of the gradient of the table's row i (core/squares.h).
void table_squared_norms(Tensor table, Tensor squares, std::optional<Tensor> chunk_tensors,
                         std::optional<Tensor> scratch, int64_t param_dtype);

// norm and clip become what core/squares.h says of all gradients. Of `squares` the last kSlopeColumns are scratch.
void write_clip(Tensor squares, Tensor norm, Tensor clip, std::optional<Tensor> grad_scale, double max_norm);

}  // namespace lrt::cuda
