// Instruction sets the CPU kernels are built for, and which one runs: the best this machine has, or the one
// LRTRICKS_CPU_ISA names (avx512, avx2, baseline), which tests use to compare them.
#pragma once

#include "cpu/prefetch.h"

namespace lrt::cpu {

struct Baseline {};
struct Avx2 {};
struct Avx512 {};

enum class Isa { kBaseline, kAvx2, kAvx512 };

// Whether this processor has it.
bool supported(Isa isa);
Isa active_isa();

// What is fast on this processor for parameters of that many bytes an element (docs/speed.md has the figures). Hints
// into the first cache make an AMD Zen 4 wait for them (1.05 to 1.6 times the time of a step without); those into the
// second, a little ahead, save up to 7 %. On an Intel those into the first save 8 to 11 %.
Prefetch prefetch_policy(int param_size);
const char* isa_name(Isa isa);

}  // namespace lrt::cpu
