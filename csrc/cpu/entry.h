// CPU entry of every rule: checks one step, then runs it. Errors come before anything is written.
#pragma once

#include <functional>

#include "core/arguments.h"
#include "cpu/kernels.h"
#include "operands.h"

namespace lrt::cpu {

// Raises where a step of these rows would: what a list's own call would find too late, after another list was stepped.
void check_table(Tensor table);

using KernelOf = std::function<StepKernel(Dtype param, Dtype state)>;

// What the entry needs of a rule. `hyper` points to its Hyper; `advance` says what a parameter's scalar becomes, and is
// null where the rule has none.
struct RuleEntry {
  const void* hyper;
  KernelOf kernel_of;
  Advance advance;
};

void run(const Operands& operands, const StepArguments& arguments, const RuleEntry& rule);

template <class Record>
void step(const Operands& operands, const StepArguments& arguments, const typename Record::Hyper& hyper,
          const Flags<Record>& flags) {
  const KernelOf kernel_of = with_active_isa([&](auto isa) -> KernelOf {
    return [&flags](Dtype param, Dtype state) { return find<decltype(isa), Record>(flags, param, state); };
  });
  run(operands, arguments, {&hyper, kernel_of, advance_of<typename Record::Hyper>()});
}

}  // namespace lrt::cpu
