// A variant of a rule from its record: its kernels, and its scalar loops. Included by rules.cpp alone.
// A scalar loop is the rule element by element: no tiles, no lanes, one Philox call for each decision.
#pragma once

#include "core/pairs.h"
#include "variants.h"

namespace lrt::test {

inline bool keeps(const cpu::ListStep& list, const cpu::TensorStep& tensor, const cpu::Range& range, int64_t i) {
  if (range.keeps) return range.keeps[i] < 0;
  return keep_bits(keep_stream(list, tensor), range.first_tile * kTile + i) < list.threshold;
}

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
    const bool keep = keeps(list, tensor, range, i);
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
    const bool keep = keeps(list, tensor, range, i);
    if (keep) params[i] = from_real<Param>(moved_param<Decay::kSelect>(scalars, param, mean));
  }
}

template <class Rule, class Hyper, class Param, class State>
cpu::StepKernel scalar_instance() {
  if constexpr (kHasRing<Rule>) {
    return scalar_ring_step<Rule, Hyper, Param, State>;
  } else {
    return scalar_step<Rule, Hyper, Param, State>;
  }
}

template <class Record, bool... kFlags>
Variant variant(const char* name, unsigned variances, const typename Record::Hyper& hyper, Formula formula) {
  using Chosen = lrt::Variant<Record, kFlags...>;
  const auto native = [](cpu::Isa isa, Dtype param, Dtype state) {
    return cpu::with_isa(
        isa, [=](auto tag) { return cpu::find<decltype(tag), Record>(Flags<Record>{{kFlags...}}, param, state); });
  };
  const auto scalar = [](Dtype param, Dtype state) {
    return with_pair<cpu::StepKernel>(param, state, nullptr, []<class Param, class State>() {
      return scalar_instance<typename Chosen::template Rule<Real<Param>>, typename Record::Hyper, Param, State>();
    });
  };
  const int states = Chosen::template Rule<double>::kStates;
  const Advance advance = advance_of<typename Record::Hyper>();
  int64_t slots = 1;
  if constexpr (requires { hyper.window; }) slots = hyper.window;
  return {name, states, variances, &hyper, native, scalar, advance, formula, slots};
}

}  // namespace lrt::test
