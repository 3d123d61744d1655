// The inventory (rules.cpp): every rule variant with its kernels, an independent scalar loop of the same signature, and
// a formula.
// Each test of kernels runs over variants() x kPairs x available_isas().
#pragma once

#include <array>
#include <deque>
#include <string>
#include <vector>

#include "core/pairs.h"
#include "cpu/kernels.h"

namespace lrt::test {

struct DtypePair {
  Dtype param, state;
};
template <class... P>
constexpr std::array<DtypePair, sizeof...(P)> dtypes_of(TypeList<P...>) {
  return {{{kDtypeOf<typename P::Param>, kDtypeOf<typename P::State>}...}};
}
constexpr auto kPairs = dtypes_of(Pairs{});

// One element's history and its direction at step t.
struct Moments {
  double m = 0, v = 0, extra = 0;
  std::deque<double> last = {};  // gradients
};
using Formula = double (*)(double grad, double t, Moments& s);

struct Variant {
  std::string name;
  int states;
  unsigned variances;  // bit k: state k is a mean of squares, never negative
  const void* hyper;
  cpu::StepKernel (*native)(cpu::Isa isa, Dtype param, Dtype state);
  cpu::StepKernel (*scalar)(Dtype param, Dtype state);
  Advance advance;    // of the rule's scalar, or null
  Formula formula;    // its direction, written down from its paper
  int64_t slots = 1;  // of the parameter's size, that a state has
};

const std::vector<Variant>& variants();
const Variant& variant_named(const std::string& name);

// Those this machine runs, as LRTRICKS_CPU_ISA selects them.
const std::vector<cpu::Isa>& available_isas();
void select_isa(cpu::Isa isa);

const char* dtype_name(Dtype dtype);
void store(Dtype dtype, double value, void* to);

}  // namespace lrt::test
