// One call of a step op, decoded: the lists, the scalars, and what the backends need of both.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "core/update.h"

namespace lrt {

using torch::stable::Tensor;

// A hyper-parameter given as a number or as a 0-dim tensor; the tensor wins.
struct Number {
  double value;
  std::optional<Tensor> tensor;
};

struct ListCall {
  std::vector<Tensor> params, grads;
  std::vector<std::vector<Tensor>> states;
  std::vector<Tensor> steps;
  std::vector<int64_t> param_indices;
  Number lr, keep_prob, grad_weight;
  double weight_decay;
  bool decoupled_weight_decay, maximize;
  uint64_t seed;
  std::optional<Tensor> grad_scale, found_inf;
};

}  // namespace lrt
