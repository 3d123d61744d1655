// The inventory: every rule variant with its kernels and with an independent scalar loop of the same signature.
// Each test of kernels runs over variants() x kPairs x available_isas().
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/pairs.h"
#include "cpu/kernels.h"
#include "rules/all.h"

namespace lrt::test {

struct DtypePair {
  Dtype param, state;
};
template <class... P>
constexpr std::array<DtypePair, sizeof...(P)> dtypes_of(PairList<P...>) {
  return {{{kDtypeOf<typename P::Param>, kDtypeOf<typename P::State>}...}};
}
constexpr auto kPairs = dtypes_of(Pairs{});

// No default of torch.optim among them.
constexpr SGDHyper kSgd = {0.85, 0.3};
constexpr AdamHyper kAdam = {0.8, 0.95, 1e-6};
constexpr RMSpropHyper kRmsprop = {0.95, 1e-6, 0.7};
constexpr RAdamHyper kRadam = {0.8, 0.95, 1e-6};
constexpr AdaBeliefHyper kAdabelief = {0.8, 0.95, 1e-6};
constexpr NAdamHyper kNadam = {0.8, 0.95, 1e-6, 0.98};
constexpr LionHyper kLion = {0.8, 0.95};
constexpr AverageSGDHyper kAverageSgd = {3};

struct Variant {
  std::string name;
  int states;
  unsigned variances;  // bit k: state k is a mean of squares, never negative
  const void* hyper;
  cpu::StepKernel (*native)(cpu::Isa isa, Dtype param, Dtype state);
  cpu::StepKernel (*scalar)(Dtype param, Dtype state);
  Advance advance;    // of the rule's scalar, or null
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
