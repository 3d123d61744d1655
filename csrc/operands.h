// The operands of one step: what the ops' arguments say, decoded.
#pragma once

#include <optional>
#include <vector>

#include "core/table.h"
#include "tensors.h"

namespace lrt {

// Either tensors or the rows of a table. Of the members for tables alone, a CPU step needs but the first two.
struct Operands {
  std::optional<Tensor> table;
  int64_t state_mask = 0;  // bit k: the variant has its k-th state
  std::optional<Tensor> chunk_tensors, prepared, slope_scratch, slice_scratch;
  int64_t slices = 0, partials = 0;          // of all rows
  bool mapped = false;                       // on a device: whether the kernels need the rows' maps or slabs
  bool staged = false;                       // on a device: whether some are stored otherwise than they are stepped
  int64_t param_dtype = 0, state_dtype = 0;  // of all rows
  std::vector<Tensor> params, grads;
  std::vector<std::vector<Tensor>> states;
  std::vector<Tensor> scalars;  // of a rule that has one per parameter (core/record.h)
  std::vector<Tensor> steps;
  std::vector<int64_t> param_indices;
  bool centralize = false;
  std::vector<int64_t> index_maps;  // base, run, pitch of each parameter; none where all are whole
  std::optional<Tensor> sums;       // float64 that gain the step's slope, or all its sums (core/sums.h)
  // How the parameters are stored otherwise than kernels step them; empty tensors where one has none of it.
  std::vector<Tensor> mirrors, lows, changes;
  int64_t stochastic = 0;  // bit 0: parameters are rounded stochastically, bit 1: states
  int64_t window = 0;      // slots of the states' ring; 0: the states are no ring

  bool empty() const { return table ? table->size(0) == 0 : params.empty(); }

  // Whether this variant of the rule has its k-th state.
  bool has_state(size_t k) const { return table ? state_mask >> k & 1 : !states[k].empty(); }
};

// The rows of a table; raises where the tensor cannot be one. What the rows point to is the caller's word: the ops that
// take a table are for lrtricks_fused/step/table.py alone.
inline const TableRow* table_rows(const Tensor& table) {
  require(table.dim() == 2 && table.is_contiguous() && table.size(1) * 8 == sizeof(TableRow) &&
              dtype_code(table) == kLongCode,
          "Invalid table: must be contiguous int64 of ", sizeof(TableRow) / 8, " columns");
  return static_cast<const TableRow*>(table.const_data_ptr());
}

inline const TableRow* cpu_rows(const Tensor& table) {
  require(on_cpu(table), "Invalid table: must be on the CPU");
  return table_rows(table);
}

}  // namespace lrt
