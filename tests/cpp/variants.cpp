// The inventory's kernels and scalar loops (see variants.h).
// A scalar loop is the formula element by element: no tiles, no lanes, one Philox call for each decision.
#include "variants.h"

#include <cstdlib>
#include <stdexcept>

#include "check.h"
#include "core/pairs.h"

namespace lrt::test {
namespace {

using cpu::Isa;
using cpu::StepKernel;

template <class Rule, class Hyper, class Param, class State>
void scalar_step(const cpu::ListStep& list, const cpu::TensorStep& tensor, const cpu::Range& range) {
  const Rule rule = cpu::rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<Real<Param>> scalars(list.scalars);
  Param* params = static_cast<Param*>(range.param);
  const Param* grads = static_cast<const Param*>(range.grad);
  for (int64_t i = 0; i < range.count; ++i) {
    Real<Param> state[kMaxStates] = {};
    for (int k = 0; k < Rule::kStates; ++k) state[k] = to_real(static_cast<const State*>(range.states[k])[i]);
    const Real<Param> updated = update<Decay::kSelect>(rule, scalars, to_real(params[i]), to_real(grads[i]), state);
    for (int k = 0; k < Rule::kStates; ++k) static_cast<State*>(range.states[k])[i] = from_real<State>(state[k]);
    const bool keep = keep_bits(keep_stream(list, tensor), range.first_tile * kTile + i) < list.threshold;
    if (keep) params[i] = from_real<Param>(updated);
  }
}

template <class Rule, class Hyper, class Param, class State>
  requires kHasRing<Rule>
void scalar_ring_step(const cpu::ListStep& list, const cpu::TensorStep& tensor, const cpu::Range& range) {
  const Rule rule = cpu::rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<Real<Param>> scalars(list.scalars);
  Param* params = static_cast<Param*>(range.param);
  for (int64_t i = 0; i < range.count; ++i) {
    const auto slot = [&](int64_t number) -> State& {
      return static_cast<State*>(range.states[0])[number * tensor.numel + i];
    };
    const Real<Param> param = to_real(params[i]);
    slot(rule.slot) = from_real<State>(
        decayed_grad<Decay::kSelect>(scalars, param, to_real(static_cast<const Param*>(range.grad)[i])));
    Real<Param> mean = to_real(slot(0));
    for (int64_t number = 1; number < rule.filled; ++number) {
      mean = mean + (to_real(slot(number)) - mean) * (Real<Param>(1) / static_cast<Real<Param>>(number + 1));
    }
    const bool keep = keep_bits(keep_stream(list, tensor), range.first_tile * kTile + i) < list.threshold;
    if (keep) params[i] = from_real<Param>(moved_param<Decay::kSelect>(scalars, param, mean));
  }
}

template <class Rule, class Hyper, class Param, class State>
StepKernel scalar_instance() {
  if constexpr (kHasRing<Rule>) {
    return scalar_ring_step<Rule, Hyper, Param, State>;
  } else {
    return scalar_step<Rule, Hyper, Param, State>;
  }
}

template <class Record, bool... kFlags>
Variant variant(const char* name, unsigned variances, const typename Record::Hyper& hyper) {
  using Chosen = lrt::Variant<Record, kFlags...>;
  const auto native = [](Isa isa, Dtype param, Dtype state) {
    select_isa(isa);
    return cpu::with_active_isa(
        [=](auto tag) { return cpu::find<decltype(tag), Record>(Flags<Record>{{kFlags...}}, param, state); });
  };
  const auto scalar = [](Dtype param, Dtype state) {
    return with_pair<StepKernel>(param, state, nullptr, []<class Param, class State>() {
      return scalar_instance<typename Chosen::template Rule<Real<Param>>, typename Record::Hyper, Param, State>();
    });
  };
  const int states = Chosen::template Rule<double>::kStates;
  const Advance advance = advance_of<typename Record::Hyper>();
  int64_t slots = 1;
  if constexpr (requires { hyper.window; }) slots = hyper.window;
  return {name, states, variances, &hyper, native, scalar, advance, slots};
}

bool selectable(Isa isa) {
  select_isa(isa);
  try {
    return cpu::active_isa() == isa;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      variant<SGDRule, false, false>("sgd", 0b0, kSgd),
      variant<SGDRule, true, false>("sgd momentum", 0b0, kSgd),
      variant<SGDRule, true, true>("sgd nesterov", 0b0, kSgd),
      variant<AdamRule, false>("adam", 0b110, kAdam),
      variant<AdamRule, true>("amsgrad", 0b110, kAdam),
      variant<RMSpropRule, false, false>("rmsprop", 0b1, kRmsprop),
      variant<RMSpropRule, false, true>("rmsprop momentum", 0b1, kRmsprop),
      variant<RMSpropRule, true, false>("rmsprop centered", 0b1, kRmsprop),
      variant<RMSpropRule, true, true>("rmsprop centered momentum", 0b1, kRmsprop),
      variant<RAdamRule>("radam", 0b10, kRadam),
      variant<AdaBeliefRule>("adabelief", 0b10, kAdabelief),
      variant<NAdamRule>("nadam", 0b10, kNadam),
      variant<LionRule>("lion", 0b0, kLion),
      variant<AverageSGDRule>("average sgd", 0b0, kAverageSgd),
  };
  return all;
}

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
