// The CPU step kernel: load -> update -> keep -> store over a tile-aligned range of one tensor.
// A template over (instruction set, rule, storage types); rule_*.cpp instantiate it once per instruction set.
#pragma once

#include <algorithm>
#include <utility>

#include "core/dtype.h"
#include "core/update.h"
#include "cpu/lanes.h"

namespace lrt::cpu {

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

// `count` consecutive elements and their decisions, as signs.
// State indices are a parameter pack, so that the compiler holds states and their pointers in registers.
template <Decay kDecay, class Rule, class Param, class State, int... K>
LRT_HD void update_row(const Rule& rule, const UpdateScalars<Real<Param>>& scalars, Param* params, const Param* grads,
                       State* const (&states)[kMaxStates], int count, const int32_t* keeps,
                       std::integer_sequence<int, K...>) {
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    Real<Param> state[kMaxStates] = {to_real(states[K][i])...};
    const Param old_param = params[i];
    const Param new_param =
        from_real<Param>(update<kDecay>(rule, scalars, to_real(old_param), to_real(grads[i]), state));
    ((states[K][i] = from_real<State>(state[K])), ...);
    params[i] = keeps[i] < 0 ? new_param : old_param;
  }
}

constexpr int64_t kPrefetch = kTile;  // elements ahead
template <class T>
LRT_HD void prefetch_row(const T* row) {
  const char* p = reinterpret_cast<const char*>(row);
  for (unsigned b = 0; b < kLanes * sizeof(T); b += 64) __builtin_prefetch(p + b);
}

template <Decay kDecay>
using DecayChoice = std::integral_constant<Decay, kDecay>;

template <class Isa, class Rule, class Hyper, class Param, class State>
void step_kernel(const TensorStep& tensor, const Range& range) {
  const Rule rule(*static_cast<const Hyper*>(tensor.hyper), tensor.step);
  const UpdateScalars<Real<Param>> scalars(tensor.scalars);
  // Only whole tiles ask for the tile after them: from the rest of a range on, the lines would be lost.
  const auto row = [&](auto prefetch, auto decay, int64_t begin, int count, const int32_t* keeps)
                       __attribute__((always_inline)) {
    const auto state_row = [&](int k) {
      return k < Rule::kStates ? static_cast<State*>(range.states[k]) + begin : nullptr;
    };
    State* const states[kMaxStates] = {state_row(0), state_row(1), state_row(2)};
    if constexpr (prefetch.value) {
      prefetch_row(static_cast<Param*>(range.param) + begin + kPrefetch);
      prefetch_row(static_cast<const Param*>(range.grad) + begin + kPrefetch);
      for (int k = 0; k < Rule::kStates; ++k) prefetch_row(states[k] + kPrefetch);
    }
    update_row<decay.value>(rule, scalars, static_cast<Param*>(range.param) + begin,
                            static_cast<const Param*>(range.grad) + begin, states, count, keeps,
                            std::make_integer_sequence<int, Rule::kStates>{});
  };

  const int64_t full_tiles = range.count / kTile;
  TileKeeps keeps[2];
  const auto run_full_tiles = [&](auto draws, auto decay) __attribute__((always_inline)) {
    for (int64_t tile = 0; tile < full_tiles; ++tile) {
      const TileKeeps& now = keeps[tile % 2];
      TileKeeps& next = keeps[(tile + 1) % 2];
      for (int r = 0; r < 8; r += kPieceRows) {
        // The next tile's draws, a piece between some rows of this one: loads stay in flight meanwhile.
        if (draws.value) draw_piece<Isa>(tensor.key, tensor.threshold, range.first_tile + tile + 1, 8 * r, next);
        for (int p = r; p < r + kPieceRows; ++p) {
          row(std::true_type{}, decay, tile * kTile + p * kLanes, kLanes, now.row[p]);
        }
      }
    }
  };
  if (tensor.threshold == 0 || tensor.threshold == kKeepAll) {
    std::memset(keeps, tensor.threshold == 0 ? 0 : -1, sizeof(keeps));
    run_full_tiles(std::false_type{}, DecayChoice<Decay::kSelect>{});
  } else {
    draw_tile<Isa>(tensor.key, tensor.threshold, range.first_tile, keeps[0]);
    const Decay decay = std::is_same_v<Param, float> ? decay_of(tensor.scalars) : Decay::kSelect;
    switch (decay) {
      case Decay::kNone: run_full_tiles(std::true_type{}, DecayChoice<Decay::kNone>{}); break;
      case Decay::kCoupled: run_full_tiles(std::true_type{}, DecayChoice<Decay::kCoupled>{}); break;
      case Decay::kDecoupled: run_full_tiles(std::true_type{}, DecayChoice<Decay::kDecoupled>{}); break;
      case Decay::kSelect: run_full_tiles(std::true_type{}, DecayChoice<Decay::kSelect>{}); break;
    }
  }
  for (int64_t begin = full_tiles * kTile; begin < range.count; begin += kLanes) {
    const int r = static_cast<int>(begin / kLanes % 8), count = static_cast<int>(std::min(kLanes, range.count - begin));
    row(std::false_type{}, DecayChoice<Decay::kSelect>{}, begin, count, keeps[full_tiles % 2].row[r]);
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
