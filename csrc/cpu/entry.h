// CPU entry of every rule: checks one decoded call, then runs it. Errors come before anything is written.
#pragma once

#include <functional>

#include "call.h"
#include "cpu/kernels.h"

namespace lrt::cpu {

// Raises where a step of these rows would: what a list's own call would find too late, after another list was stepped.
void check_table(Tensor table);

using KernelOf = std::function<StepKernel(Dtype param, Dtype state)>;

// `hyper` points to the rule's Hyper.
void run(const ListCall& call, const void* hyper, const KernelOf& kernel_of);

template <class Record>
void step(const ListCall& call, const typename Record::Hyper& hyper, const Flags<Record>& flags) {
  run(call, &hyper, with_active_isa([&](auto isa) -> KernelOf {
        return [&flags](Dtype param, Dtype state) { return find<decltype(isa), Record>(flags, param, state); };
      }));
}

}  // namespace lrt::cpu
