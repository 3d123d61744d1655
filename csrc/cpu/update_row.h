// The step of a row of elements on the CPU: load -> update -> keep -> store.
#pragma once

#include <type_traits>
#include <utility>

#include "core/slice_mean.h"
#include "core/sums.h"
#include "core/update.h"
#include "cpu/lanes.h"
#include "cpu/prefetch.h"

namespace lrt::cpu {

// Asks for the lines of the row that lies so many bytes behind this one.
template <Hint kHint, class T>
LRT_HD void ask_row_ahead(const T* row, int64_t bytes) {
  ask_lines<kHint>(reinterpret_cast<const char*>(row) + bytes, kLanes * sizeof(T));
}

// Whether loops are compiled for each way in which weight decay enters, which saves some 10 % of what they compute.
// Under the sanitizers, which find the same accesses, they are not, nor for x86 without AVX2: that takes minutes.
#if defined(LRT_ONE_DECAY)
constexpr bool kOneDecay = true;
#else
constexpr bool kOneDecay = false;
#endif

// Whether a rule has loops for this way: not for those that its optimizers do not know, if it says so.
template <class Rule>
constexpr bool has_loops(Decay decay) {
  if constexpr (!kOneDecay && requires { Rule::kOnlyDecay; }) {
    return decay == Decay::kNone || decay == Rule::kOnlyDecay;
  }
  return true;
}

// visit.operator()<Decay>() with that way, which the rule has loops for, or with the one that is told apart at run
// time.
template <class Rule, class Visit>
LRT_HD void with_decay(Decay decay, const Visit& visit) {
  if constexpr (kOneDecay) {
    visit.template operator()<Decay::kSelect>();
  } else {
    const auto visit_one = [&]<Decay kDecay>() __attribute__((always_inline)) {
      if constexpr (has_loops<Rule>(kDecay)) visit.template operator()<kDecay>();
    };
    switch (decay) {
      case Decay::kNone: return visit_one.template operator()<Decay::kNone>();
      case Decay::kCoupled: return visit_one.template operator()<Decay::kCoupled>();
      case Decay::kDecoupled: return visit_one.template operator()<Decay::kDecoupled>();
      case Decay::kSelect: return;
    }
  }
}

// A bfloat16 in the upper half of a word, where all is done to it: a width of 32 bits throughout saves shuffles.
LRT_HD uint32_t in_upper_half(BFloat16 x) { return static_cast<uint32_t>(x) << 16; }
LRT_HD BFloat16 of_upper_half(uint32_t word) { return static_cast<BFloat16>(static_cast<uint16_t>(word >> 16)); }

// What is stored of an element: the number that its update has made, rounded, or the old one.
template <class Param>
LRT_HD Param stored_of(int32_t keep, Real<Param> moved, Param old) {
  if constexpr (std::is_same_v<Param, BFloat16>) {
    return of_upper_half(select(keep, rounded_to_upper_half(moved), in_upper_half(old)));
  } else {
    const Param rounded = from_real<Param>(moved);
    return keep < 0 ? rounded : old;
  }
}

// Whether lanes sum the slopes of their elements; of the gradient that the rule sees, or of another that is stored, and
// with this all that a step can sum.
enum class Slopes { kNone, kOfGrad, kOfStored, kAndMetrics };

// `count` consecutive elements and their decisions, as signs; the gradient loses `mean`, if it is to be centralized.
// State indices are a parameter pack, so that the compiler holds states and their pointers in registers.
template <Decay kDecay, Slopes kSlopes, bool kCentralizes, class Rule, class Param, class State, int... K>
LRT_HD void update_row(const Rule& rule, const UpdateScalars<Real<Param>>& scalars, Param* params, const Param* grads,
                       const Param* stored_grads, State* const (&states)[kMaxStates], int count, const int32_t* keeps,
                       Real<Param> mean, Real<Param>* slopes, std::integer_sequence<int, K...>) {
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    Real<Param> state[kMaxStates] = {to_real(states[K][i])...};
    const Param old_param = params[i];
    const Param grad = kCentralizes ? centralized(grads[i], mean) : grads[i];
    const Real<Param> moved = update<kDecay>(rule, scalars, to_real(old_param), to_real(grad), state);
    ((states[K][i] = from_real<State>(state[K])), ...);
    const Param stored = stored_of(keeps[i], moved, old_param);
    params[i] = stored;
    if constexpr (kSlopes != Slopes::kNone) {
      const Param of_slope = kSlopes == Slopes::kOfGrad ? grads[i] : stored_grads[i];
      slopes[i] = slopes[i] + slope_term(to_real(of_slope), to_real(old_param), to_real(stored));
    }
    if constexpr (kSlopes == Slopes::kAndMetrics) {
      add_metrics<Param>(slopes + i, kLanes, keeps[i] < 0, old_param, stored);
    }
  }
}

}  // namespace lrt::cpu
