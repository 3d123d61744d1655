// Instruction sets the CPU kernels are built for, and which one runs: the best this machine has, or the one
// LRTRICKS_CPU_ISA names (avx512, avx2, baseline), which tests use to compare them.
#pragma once

namespace lrt::cpu {

struct Baseline {};
struct Avx2 {};
struct Avx512 {};

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace lrt::cpu
