// The CPU step kernel: load -> update -> keep -> store over a tile-aligned range of one tensor.
// A template over (instruction set, rule, storage types); rule_*.cpp instantiate it once per instruction set.
#pragma once

#include <utility>

#include "core/dtype.h"
#include "core/update.h"
#include "cpu/lanes.h"

namespace lrt::cpu {

enum class Dtype { kFloat, kDouble, kBFloat16, kHalf };

// One tile-aligned run of one tensor. Pointers are to its first element; sizes in elements.
struct Range {
  void* param;
  const void* grad;
  void* states[kMaxStates];
  int64_t first_tile;  // index of the run's first tile in the whole parameter
  int64_t count;
};

// What all ranges of one tensor share in one step.
struct TensorStep {
  const void* hyper;  // the rule's own Hyper struct
  StepScalars scalars;
  KeepStream key;
  uint32_t threshold;
  double step;
};

using StepKernel = void (*)(const TensorStep&, const Range&);

// `count` consecutive elements from `begin`, whose keep bits are the upper or lower halves of `words`.
// State indices are a parameter pack, so that the compiler holds states and their pointers in registers.
template <class Rule, class Param, class State, int... K>
LRT_HD void update_row(const Rule& rule, const UpdateScalars<Real<Param>>& scalars, uint32_t threshold,
                       Param* params, const Param* grads, State* const (&states)[kMaxStates], int count,
                       const uint32_t* words, int shift, std::integer_sequence<int, K...>) {
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    Real<Param> state[kMaxStates] = {to_real(states[K][i])...};
    const Param old_param = params[i];
    const Param new_param = from_real<Param>(update(rule, scalars, to_real(old_param), to_real(grads[i]), state));
    ((states[K][i] = from_real<State>(state[K])), ...);
    params[i] = ((words[i] >> shift) & 0xffffu) < threshold ? new_param : old_param;
  }
}

template <class Isa, class Rule, class Hyper, class Param, class State>
void step_kernel(const TensorStep& tensor, const Range& range) {
  const Rule rule(*static_cast<const Hyper*>(tensor.hyper), tensor.step);
  const UpdateScalars<Real<Param>> scalars(tensor.scalars);
  const auto row = [&](int64_t begin, int count, const uint32_t* words, int shift) __attribute__((always_inline)) {
    State* const states[kMaxStates] = {static_cast<State*>(range.states[0]) + begin,
                                       static_cast<State*>(range.states[1]) + begin,
                                       static_cast<State*>(range.states[2]) + begin};
    update_row(rule, scalars, tensor.threshold, static_cast<Param*>(range.param) + begin,
               static_cast<const Param*>(range.grad) + begin, states, count, words, shift,
               std::make_integer_sequence<int, Rule::kStates>{});
  };

  TileWords words = {};  // zeros keep every element of an unmasked step: 0 < kKeepAll
  const bool draws = tensor.threshold != 0 && tensor.threshold != kKeepAll;
  for (int64_t tile = 0; tile * kTile < range.count; ++tile) {
    if (draws) draw_tile<Isa>(tensor.key, range.first_tile + tile, words);
    for (int r = 0; r < kTile / kLanes; ++r) {
      const int64_t begin = tile * kTile + r * kLanes, left = range.count - begin;
      const int shift = 16 * (r % 2);
      if (left >= kLanes) {
        row(begin, kLanes, words.word[r / 2], shift);
      } else if (left > 0) {
        row(begin, static_cast<int>(left), words.word[r / 2], shift);
      }
    }
  }
}

// The kernel of a rule for a pair of storage types; null where the pair is not offered.
template <class Isa, template <class> class Rule, class Hyper>
StepKernel kernel_for(Dtype param, Dtype state) {
  switch (param) {
    case Dtype::kFloat:
      return state == Dtype::kFloat ? step_kernel<Isa, Rule<float>, Hyper, float, float> : nullptr;
    case Dtype::kDouble:
      return state == Dtype::kDouble ? step_kernel<Isa, Rule<double>, Hyper, double, double> : nullptr;
    case Dtype::kBFloat16:
      return state == Dtype::kFloat      ? step_kernel<Isa, Rule<float>, Hyper, BFloat16, float>
             : state == Dtype::kBFloat16 ? step_kernel<Isa, Rule<float>, Hyper, BFloat16, BFloat16>
                                         : nullptr;
    case Dtype::kHalf:
      return state == Dtype::kFloat  ? step_kernel<Isa, Rule<float>, Hyper, Half, float>
             : state == Dtype::kHalf ? step_kernel<Isa, Rule<float>, Hyper, Half, Half>
                                     : nullptr;
  }
  return nullptr;
}

}  // namespace lrt::cpu
