// Where the CPU kernels of every rule are found, and the instruction set in use.
#pragma once

#include "core/record.h"
#include "cpu/isa.h"
#include "cpu/work.h"

namespace lrt::cpu {

// The kernel of a rule's variant; null where the pair of storage types is not offered. Defined in rule.cpp, compiled
// once per rule and instruction set.
template <class Isa, class Record>
StepKernel find(const Flags<Record>& flags, Dtype param, Dtype state);

// Calls visit with the tag of an instruction set.
template <class Visit>
auto with_isa([[maybe_unused]] Isa isa, const Visit& visit) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx512: return visit(Avx512{});
    case Isa::kAvx2: return visit(Avx2{});
    case Isa::kBaseline: break;
  }
#endif
  return visit(Baseline{});
}

// The same with that of the one in use.
template <class Visit>
auto with_active_isa(const Visit& visit) {
  return with_isa(active_isa(), visit);
}

}  // namespace lrt::cpu
