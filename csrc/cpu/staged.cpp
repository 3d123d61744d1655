// Which parameters of a step are stored otherwise than their kernel steps them (see staged.h).
#include "cpu/staged.h"

#include "core/pairs.h"

namespace lrt::cpu {
namespace {

// What is written beside params[i], or null. `bytes` an element, 0: of any size; `of` says so.
void* beside(const std::vector<Tensor>& list, size_t i, int64_t numel, size_t bytes, const char* name, const char* of) {
  if (list.empty() || list[i].numel() == 0) return nullptr;
  require(on_cpu(list[i]) && list[i].is_contiguous() && list[i].numel() == numel &&
              (bytes == 0 || list[i].element_size() == bytes),
          "Invalid ", name, "[", i, "]: must be contiguous on the CPU, of ", numel, " elements", of);
  require_memory(list[i], name, i);
  return list[i].mutable_data_ptr();
}

void check_stage(const Stage& stage, size_t i) {
  const StoredAs& as = stage.as;
  require(as.param != Dtype::kDouble && as.grad != Dtype::kDouble && as.state != Dtype::kDouble, "Invalid grads[", i,
          "]: its dtype differs from params[", i, "], or one is float64");
  require(size_of(as.grad) == 4 || size_of(as.param) == 4 || as.grad == as.param, "Invalid grads[", i,
          "]: its dtype differs from params[", i, "]");
  require(!stage.low || as.param == Dtype::kBFloat16, "Invalid lows[", i, "]: must be of a bfloat16 parameter");
  require(!stage.mirror || (as.param == Dtype::kFloat && size_of(as.mirror) == 2), "Invalid mirrors[", i,
          "]: must be bfloat16 or float16, of a float32 parameter");
}

// The stage, if the tensor is stored otherwise than its kernel steps it. What lies beside it is given, and its dtypes.
std::optional<Stage> staged(Stage stage, int64_t stochastic, size_t i, const KernelOf& kernel_of) {
  StoredAs& as = stage.as;
  if (!stage.mirror) as.mirror = Dtype::kFloat;
  as.split = stage.low != nullptr;
  as.changes = stage.changes != nullptr;
  as.stochastic = stochastic & 1 && !as.split && size_of(as.param) == 2;
  as.stochastic_states = stochastic & 2 && size_of(as.state) == 2;
  const bool beside = stage.mirror || as.split || as.changes;
  if (as.grad == as.param && kernel_of(as.param, as.state) && !beside && !as.rounds()) return std::nullopt;
  check_stage(stage, i);
  return stage;
}

}  // namespace

std::optional<Stage> stage_of(const Operands& operands, size_t i, std::optional<Dtype> state,
                              const KernelOf& kernel_of) {
  const std::optional<Dtype> param = dtype_of(operands.params[i]), grad = dtype_of(operands.grads[i]);
  if (!param || !grad || !state) return std::nullopt;
  const int64_t numel = operands.params[i].numel();
  Stage stage = {
      .as = {.param = *param, .grad = *grad, .state = *state},
      .mirror = beside(operands.mirrors, i, numel, 0, "mirrors", ""),
      .low = static_cast<int16_t*>(beside(operands.lows, i, numel, 2, "lows", " of int16")),
      .changes = static_cast<uint8_t*>(beside(operands.changes, i, (numel + 7) / 8, 1, "changes", " of uint8")),
      .map = nullptr};
  // One of another dtype is refused as one of float32 is.
  if (stage.mirror) stage.as.mirror = dtype_of(operands.mirrors[i]).value_or(Dtype::kFloat);
  return staged(stage, operands.stochastic, i, kernel_of);
}

std::optional<Stage> stage_of(const TableRow& row, int64_t stochastic, size_t i, const KernelOf& kernel_of) {
  const StoredAs as = {.param = static_cast<Dtype>(row.param_dtype),
                       .grad = static_cast<Dtype>(row.grad_dtype),
                       .state = static_cast<Dtype>(row.state_dtype),
                       .mirror = static_cast<Dtype>(row.mirror_dtype)};
  return staged({.as = as,
                 .mirror = reinterpret_cast<void*>(row.mirror),
                 .low = reinterpret_cast<int16_t*>(row.low),
                 .changes = reinterpret_cast<uint8_t*>(row.changes),
                 .map = nullptr},
                stochastic, i, kernel_of);
}

}  // namespace lrt::cpu
