// Instruction sets the CPU kernels are built for, and which one runs: the best this machine has, or the one
// LRTRICKS_CPU_ISA names (avx512, avx2, baseline), which tests use to compare them.
#pragma once

namespace lrt::cpu {

struct Baseline {};
struct Avx2 {};
struct Avx512 {};

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa active_isa();

// Whether a kernel asks for lines of memory before it reads them. Hints into the first cache make an AMD Zen 4 wait for
// them (1.6 times the time of a step without), which its own prefetchers do not; on an Intel they save 8 % of a step.
bool prefetches();
const char* isa_name(Isa isa);

}  // namespace lrt::cpu
