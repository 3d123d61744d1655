// Which parameters of a step are stored otherwise than their kernel steps them: stages (stage.h) from operands.
#pragma once

#include <optional>

#include "cpu/entry.h"
#include "cpu/stage.h"

namespace lrt::cpu {

// How params[i], whose states are of that dtype, is stored; nothing where it is as its kernel steps it, or where a
// dtype is none that a kernel steps. Raises where it cannot be stored so. The map of a shard is the caller's to enter.
std::optional<Stage> stage_of(const Operands& operands, size_t i, std::optional<Dtype> state,
                              const KernelOf& kernel_of);
// The same of a row of a table, number i. `stochastic`: of Operands.
std::optional<Stage> stage_of(const TableRow& row, int64_t stochastic, size_t i, const KernelOf& kernel_of);

}  // namespace lrt::cpu
