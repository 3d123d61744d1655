// One call of a step op, decoded: the lists, the scalars, and what the backends need of both.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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

// One parameter of an address table (lrtricks_fused/table.py): its operands lie contiguously.
struct TableRow {
  int64_t param, grad, states[kMaxStates], step, count, param_index, param_dtype, state_dtype;
};

// The operands are either tensors or the rows of a table.
struct ListCall {
  std::optional<Tensor> table;
  std::vector<Tensor> params, grads;
  std::vector<std::vector<Tensor>> states;
  std::vector<Tensor> steps;
  std::vector<int64_t> param_indices;
  Number lr, keep_prob, grad_weight;
  double weight_decay;
  bool decoupled_weight_decay, maximize;
  uint64_t seed;
  std::optional<Tensor> grad_scale, found_inf;

  // Whether this variant of the rule has its k-th state.
  bool has_state(size_t k) const;
};

// The rows of a table on the CPU; raises where the tensor cannot be one.
inline const TableRow* table_rows(const Tensor& table) {
  STD_TORCH_CHECK(table.dim() == 2 && table.is_contiguous() && table.size(1) * 8 == sizeof(TableRow) &&
                      table.element_size() == 8,
                  "Invalid table: must be contiguous int64 of ", sizeof(TableRow) / 8, " columns");
  return static_cast<const TableRow*>(table.const_data_ptr());
}

inline bool ListCall::has_state(size_t k) const {
  if (!table) return !states[k].empty();
  const TableRow *rows = table_rows(*table), *end = rows + table->size(0);  // a tensor without elements has no address
  return std::any_of(rows, end, [k](const TableRow& row) { return row.states[k] != 0; });
}

}  // namespace lrt
