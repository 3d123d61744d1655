// Which parameters of a step are stored otherwise than their kernel steps them (see staged.h).
#include "cpu/staged.h"

#include "core/pairs.h"

namespace lrt::cpu {
namespace {

// What is written beside params[i], or null.
void* beside(const std::vector<Tensor>& list, size_t i, int64_t numel, const char* name) {
  if (list.empty() || list[i].numel() == 0) return nullptr;
  require(on_cpu(list[i]) && list[i].is_contiguous() && list[i].numel() == numel, "Invalid ", name, "[", i,
          "]: must be contiguous on the CPU, of ", numel, " elements");
  require_memory(list[i], name, i);
  return list[i].mutable_data_ptr();
}

// Checks a stage, and enters its mirror's dtype.
void check_stage(const Operands& operands, size_t i, Stage& stage) {
  require(stage.param != Dtype::kDouble && stage.grad != Dtype::kDouble && stage.state != Dtype::kDouble,
          "Invalid grads[", i, "]: its dtype differs from params[", i, "], or one is float64");
  require(size_of(stage.grad) == 4 || size_of(stage.param) == 4 || stage.grad == stage.param, "Invalid grads[", i,
          "]: its dtype differs from params[", i, "]");
  require(!stage.low || (stage.param == Dtype::kBFloat16 && operands.lows[i].element_size() == 2), "Invalid lows[", i,
          "]: must be int16, of a bfloat16 parameter");
  require(!stage.changes || operands.changes[i].element_size() == 1, "Invalid changes[", i, "]: must be uint8");
  if (!stage.mirror) return;
  const std::optional<Dtype> mirror = dtype_of(operands.mirrors[i]);
  require(stage.param == Dtype::kFloat && mirror && size_of(*mirror) == 2, "Invalid mirrors[", i,
          "]: must be bfloat16 or float16, of a float32 parameter");
  stage.mirror_dtype = *mirror;
}

}  // namespace

std::optional<Stage> stage_of(const Operands& operands, size_t i, std::optional<Dtype> state,
                              const KernelOf& kernel_of) {
  const std::optional<Dtype> param = dtype_of(operands.params[i]), grad = dtype_of(operands.grads[i]);
  if (!param || !grad || !state) return std::nullopt;
  const int64_t numel = operands.params[i].numel();
  Stage stage = {.param = *param,
                 .grad = *grad,
                 .state = *state,
                 .mirror = beside(operands.mirrors, i, numel, "mirrors"),
                 .mirror_dtype = Dtype::kFloat,
                 .low = static_cast<int16_t*>(beside(operands.lows, i, numel, "lows")),
                 .changes = static_cast<uint8_t*>(beside(operands.changes, i, (numel + 7) / 8, "changes")),
                 .stochastic = false,
                 .stochastic_states = false,
                 .map = nullptr};
  stage.stochastic = operands.stochastic & 1 && !stage.low && size_of(*param) == 2;
  stage.stochastic_states = operands.stochastic & 2 && size_of(*state) == 2;
  const bool plain = *grad == *param && kernel_of(*param, *state) && !stage.mirror && !stage.low && !stage.changes &&
                     !stage.stochastic && !stage.stochastic_states;
  if (plain) return std::nullopt;
  check_stage(operands, i, stage);
  return stage;
}

}  // namespace lrt::cpu
