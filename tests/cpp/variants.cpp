// The inventory's kernels and scalar loops (see variants.h).
// A scalar loop is the formula element by element: no tiles, no lanes, one Philox call for each decision.
#include "variants.h"

#include <cstdlib>
#include <stdexcept>

#include "check.h"

namespace lrt::test {
namespace {

using cpu::Isa;
using cpu::StepKernel;

template <class Rule, class Hyper, class Param, class State>
void scalar_step(const cpu::TensorStep& tensor, const cpu::Range& range) {
  const Rule rule(*static_cast<const Hyper*>(tensor.hyper), tensor.step);
  const UpdateScalars<Real<Param>> scalars(tensor.scalars);
  Param* params = static_cast<Param*>(range.param);
  const Param* grads = static_cast<const Param*>(range.grad);
  for (int64_t i = 0; i < range.count; ++i) {
    Real<Param> state[kMaxStates] = {};
    for (int k = 0; k < Rule::kStates; ++k) state[k] = to_real(static_cast<const State*>(range.states[k])[i]);
    const Real<Param> updated = update<Decay::kSelect>(rule, scalars, to_real(params[i]), to_real(grads[i]), state);
    for (int k = 0; k < Rule::kStates; ++k) static_cast<State*>(range.states[k])[i] = from_real<State>(state[k]);
    const bool keep = keep_bits(tensor.key, range.first_tile * kTile + i) < tensor.threshold;
    if (keep) params[i] = from_real<Param>(updated);
  }
}

template <class Rule, class Hyper, class Param, class State>
  requires kHasRing<Rule>
void scalar_ring_step(const cpu::TensorStep& tensor, const cpu::Range& range) {
  const Rule rule(*static_cast<const Hyper*>(tensor.hyper), tensor.step);
  const UpdateScalars<Real<Param>> scalars(tensor.scalars);
  Param* params = static_cast<Param*>(range.param);
  for (int64_t i = 0; i < range.count; ++i) {
    const auto slot = [&](int64_t number) -> State& {
      return static_cast<State*>(range.states[0])[number * range.count + i];
    };
    const Real<Param> param = to_real(params[i]);
    slot(rule.slot) = from_real<State>(
        decayed_grad<Decay::kSelect>(scalars, param, to_real(static_cast<const Param*>(range.grad)[i])));
    Real<Param> mean = to_real(slot(0));
    for (int64_t number = 1; number < rule.filled; ++number) {
      mean = mean + (to_real(slot(number)) - mean) * (Real<Param>(1) / static_cast<Real<Param>>(number + 1));
    }
    const bool keep = keep_bits(tensor.key, range.first_tile * kTile + i) < tensor.threshold;
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

template <template <class> class Rule, class Hyper>
StepKernel scalar_for(Dtype param, Dtype state) {
  if (param == Dtype::kDouble) return scalar_instance<Rule<double>, Hyper, double, double>();
  if (param == Dtype::kFloat) return scalar_instance<Rule<float>, Hyper, float, float>();
  if (param == Dtype::kBFloat16) {
    return state == Dtype::kFloat ? scalar_instance<Rule<float>, Hyper, BFloat16, float>()
                                  : scalar_instance<Rule<float>, Hyper, BFloat16, BFloat16>();
  }
  return state == Dtype::kFloat ? scalar_instance<Rule<float>, Hyper, Half, float>()
                                : scalar_instance<Rule<float>, Hyper, Half, Half>();
}

template <class Find>
StepKernel native_for(Isa isa, const Find& find) {
  select_isa(isa);
  return cpu::with_active_isa(find);
}

template <bool kMomentum, bool kNesterov>
struct Sgd {
  template <class Real>
  using Rule = SGD<Real, kMomentum, kNesterov>;
};
template <bool kMomentum, bool kNesterov>
Variant sgd(const char* name) {
  const auto native = [](Isa isa, Dtype p, Dtype s) {
    return native_for(isa, [=](auto tag) { return cpu::find_sgd<decltype(tag)>(kMomentum, kNesterov, p, s); });
  };
  return {name, kMomentum, 0b0, &kSgd, native, scalar_for<Sgd<kMomentum, kNesterov>::template Rule, SGDHyper>};
}

template <bool kAmsgrad>
struct Adams {
  template <class Real>
  using Rule = Adam<Real, kAmsgrad>;
};
template <bool kAmsgrad>
Variant adam(const char* name) {
  const auto native = [](Isa isa, Dtype p, Dtype s) {
    return native_for(isa, [=](auto tag) { return cpu::find_adam<decltype(tag)>(kAmsgrad, p, s); });
  };
  return {name, 2 + kAmsgrad, 0b110, &kAdam, native, scalar_for<Adams<kAmsgrad>::template Rule, AdamHyper>};
}

template <bool kCentered, bool kMomentum>
struct Rmsprops {
  template <class Real>
  using Rule = RMSprop<Real, kCentered, kMomentum>;
};
template <bool kCentered, bool kMomentum>
Variant rmsprop(const char* name) {
  const auto native = [](Isa isa, Dtype p, Dtype s) {
    return native_for(isa, [=](auto tag) { return cpu::find_rmsprop<decltype(tag)>(kCentered, kMomentum, p, s); });
  };
  return {name,   1 + kCentered + kMomentum,
          0b1,    &kRmsprop,
          native, scalar_for<Rmsprops<kCentered, kMomentum>::template Rule, RMSpropHyper>};
}

Variant radam() {
  const auto native = [](Isa isa, Dtype p, Dtype s) {
    return native_for(isa, [=](auto tag) { return cpu::find_radam<decltype(tag)>(p, s); });
  };
  return {"radam", 2, 0b10, &kRadam, native, scalar_for<RAdam, RAdamHyper>};
}

Variant adabelief() {
  const auto native = [](Isa isa, Dtype p, Dtype s) {
    return native_for(isa, [=](auto tag) { return cpu::find_adabelief<decltype(tag)>(p, s); });
  };
  return {"adabelief", 2, 0b10, &kAdabelief, native, scalar_for<AdaBelief, AdaBeliefHyper>};
}

Variant average_sgd() {
  const auto native = [](Isa isa, Dtype p, Dtype s) {
    return native_for(isa, [=](auto tag) { return cpu::find_average_sgd<decltype(tag)>(p, s); });
  };
  return {"average sgd", 1, 0b0, &kAverageSgd, native, scalar_for<AverageSGD, AverageSGDHyper>, kAverageSgd.window};
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
  static const std::vector<Variant> all = {sgd<false, false>("sgd"),
                                           sgd<true, false>("sgd momentum"),
                                           sgd<true, true>("sgd nesterov"),
                                           adam<false>("adam"),
                                           adam<true>("amsgrad"),
                                           rmsprop<false, false>("rmsprop"),
                                           rmsprop<false, true>("rmsprop momentum"),
                                           rmsprop<true, false>("rmsprop centered"),
                                           rmsprop<true, true>("rmsprop centered momentum"),
                                           radam(),
                                           adabelief(),
                                           average_sgd()};
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

int64_t size_of(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

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
