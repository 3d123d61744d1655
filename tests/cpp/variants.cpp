// What is not of one rule (see variants.h).
#include "variants.h"

#include <cstdlib>
#include <stdexcept>

#include "check.h"

namespace lrt::test {
namespace {

using cpu::Isa;

bool selectable(Isa isa) {
  select_isa(isa);
  try {
    return cpu::active_isa() == isa;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace

const Variant& variant_named(const std::string& name) {
  for (const Variant& variant : variants()) {
    if (variant.name == name) return variant;
  }
  throw std::out_of_range(name);
}

void select_isa(Isa isa) { setenv("LRTRICKS_CPU_ISA", cpu::isa_name(isa), 1); }

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> available = [] {
    std::vector<Isa> found;
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (selectable(isa)) found.push_back(isa);
    }
    return found;
  }();
  return available;
}

const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat: return "float32";
    case Dtype::kDouble: return "float64";
    case Dtype::kBFloat16: return "bfloat16";
    case Dtype::kHalf: return "float16";
  }
  return "unknown";
}

void store(Dtype dtype, double value, void* to) {
  const float single = static_cast<float>(value);
  switch (dtype) {
    case Dtype::kFloat: *static_cast<float*>(to) = single; return;
    case Dtype::kDouble: *static_cast<double*>(to) = value; return;
    case Dtype::kBFloat16: *static_cast<BFloat16*>(to) = from_real<BFloat16>(single); return;
    case Dtype::kHalf: *static_cast<Half*>(to) = from_real<Half>(single); return;
  }
}

}  // namespace lrt::test
