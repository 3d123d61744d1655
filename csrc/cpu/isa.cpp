// Run-time choice of the instruction set (see isa.h).
#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lrt::cpu {

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline: return true;
    case Isa::kAvx2: return __builtin_cpu_supports("avx2");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kBaseline;
}

static constexpr Isa kBestFirst[] = {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};

const char* isa_name(Isa isa) { return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline"; }

static bool waits_for_hints() {
#if defined(__x86_64__)
  static const bool waits = __builtin_cpu_is("amdfam19h");
  return waits;
#else
  return false;
#endif
}

Prefetch prefetch_policy(int param_size) {
  if (waits_for_hints()) return {Hint::kSecond, 512};
  return {Hint::kFirst, 512 * param_size};  // a tile ahead
}

Isa active_isa() {
  const char* requested = std::getenv("LRTRICKS_CPU_ISA");
  std::string available;
  for (const Isa isa : kBestFirst) {
    if (!supported(isa)) continue;
    if (requested == nullptr || *requested == '\0' || std::string(requested) == isa_name(isa)) return isa;
    available += std::string(available.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::runtime_error(std::string("Invalid LRTRICKS_CPU_ISA=") + requested + ": this machine has " + available);
}

}  // namespace lrt::cpu
