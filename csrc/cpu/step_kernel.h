// The CPU step kernel: load -> update -> keep -> store over a tile-aligned range of one tensor.
// A template over (instruction set, rule, storage types); rule_*.cpp instantiate it once per instruction set.
#pragma once

#include <algorithm>
#include <utility>

#include "core/dtype.h"
#include "core/slope.h"
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
  double* slopes;  // of its tiles, or null
  int64_t whole_count = 0;  // of the whole parameter: from one slot of a ring to the next
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

// The same for any weight decay, and with each lane's sum of slopes. Out of line: it serves the ends of ranges and steps
// whose slope is asked for.
template <class Isa, class Rule, class Param, class State, int... K>
__attribute__((noinline)) void update_row_and_slopes(const Rule& rule, const UpdateScalars<Real<Param>>& scalars,
                                                     Param* params, const Param* grads,
                                                     State* const (&states)[kMaxStates], int count,
                                                     const int32_t* keeps, Real<Param>* slopes,
                                                     std::integer_sequence<int, K...>) {
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    Real<Param> state[kMaxStates] = {to_real(states[K][i])...};
    const Param old_param = params[i];
    const Real<Param> grad = to_real(grads[i]);
    const Param new_param = from_real<Param>(update<Decay::kSelect>(rule, scalars, to_real(old_param), grad, state));
    ((states[K][i] = from_real<State>(state[K])), ...);
    const Param stored = keeps[i] < 0 ? new_param : old_param;
    params[i] = stored;
    slopes[i] = slopes[i] + slope_term(grad, to_real(old_param), to_real(stored));
  }
}

// A tile's slope from those of its lanes.
template <class Param>
LRT_HD double tile_slope(const Real<Param> (&lanes)[kLanes]) {
  Real<Param> units[kTileUnits<Param>];
  for (int u = 0; u < kTileUnits<Param>; ++u) {
    units[u] = slope_unit<kSlopeLanes<Param>>(lanes + u * kSlopeLanes<Param>);
  }
  return slope_sum(units, kTileUnits<Param>);
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
  const auto states_at = [&](int64_t begin, State* (&states)[kMaxStates]) __attribute__((always_inline)) {
    for (int k = 0; k < kMaxStates; ++k) {
      states[k] = k < Rule::kStates ? static_cast<State*>(range.states[k]) + begin : nullptr;
    }
  };
  const auto prefetch_after = [&](int64_t begin, State* const (&states)[kMaxStates]) __attribute__((always_inline)) {
    prefetch_row(static_cast<Param*>(range.param) + begin + kPrefetch);
    prefetch_row(static_cast<const Param*>(range.grad) + begin + kPrefetch);
    for (int k = 0; k < Rule::kStates; ++k) prefetch_row(states[k] + kPrefetch);
  };
  const auto row = [&](auto decay, int64_t begin, const int32_t* keeps) __attribute__((always_inline)) {
    State* states[kMaxStates];
    states_at(begin, states);
    prefetch_after(begin, states);
    update_row<decay.value>(rule, scalars, static_cast<Param*>(range.param) + begin,
                            static_cast<const Param*>(range.grad) + begin, states, kLanes, keeps,
                            std::make_integer_sequence<int, Rule::kStates>{});
  };
  const bool draws = tensor.threshold != 0 && tensor.threshold != kKeepAll;
  const int64_t full_tiles = range.count / kTile;
  TileKeeps keeps[2];
  // Tiles from `first` on, the last of which may be a part. Only whole tiles ask for the tile after them: from the rest
  // of a range on, the lines would be lost.
  const auto run_with_slopes = [&](int64_t first) {
    for (int64_t tile = first; tile * kTile < range.count; ++tile) {
      TileKeeps& now = keeps[tile % 2];
      if (draws && tile != first) draw_tile<Isa>(tensor.key, tensor.threshold, range.first_tile + tile, now);
      Real<Param> lanes[kLanes] = {};
      const int64_t end = std::min(range.count, (tile + 1) * kTile);
      for (int64_t begin = tile * kTile; begin < end; begin += kLanes) {
        State* states[kMaxStates];
        states_at(begin, states);
        if (tile < full_tiles) prefetch_after(begin, states);
        update_row_and_slopes<Isa>(rule, scalars, static_cast<Param*>(range.param) + begin,
                                   static_cast<const Param*>(range.grad) + begin, states,
                                   static_cast<int>(std::min(kLanes, end - begin)), now.row[begin / kLanes % 8], lanes,
                                   std::make_integer_sequence<int, Rule::kStates>{});
      }
      if (!range.slopes) continue;
      range.slopes[tile] = tile_slope<Param>(lanes);
    }
  };
  const auto run_full_tiles = [&](auto drawing, auto decay) __attribute__((always_inline)) {
    for (int64_t tile = 0; tile < full_tiles; ++tile) {
      const TileKeeps& now = keeps[tile % 2];
      TileKeeps& next = keeps[(tile + 1) % 2];
      for (int r = 0; r < 8; r += kPieceRows) {
        // The next tile's draws, a piece between some rows of this one: loads stay in flight meanwhile.
        if (drawing.value) draw_piece<Isa>(tensor.key, tensor.threshold, range.first_tile + tile + 1, 8 * r, next);
        for (int p = r; p < r + kPieceRows; ++p) row(decay, tile * kTile + p * kLanes, now.row[p]);
      }
    }
  };
  if (draws) {
    draw_tile<Isa>(tensor.key, tensor.threshold, range.first_tile, keeps[0]);
  } else {
    std::memset(keeps, tensor.threshold == 0 ? 0 : -1, sizeof(keeps));
  }
  if (range.slopes) return run_with_slopes(0);
  if (!draws) {
    run_full_tiles(std::false_type{}, DecayChoice<Decay::kSelect>{});
  } else {
    const Decay decay = std::is_same_v<Param, float> ? decay_of(tensor.scalars) : Decay::kSelect;
    switch (decay) {
      case Decay::kNone: run_full_tiles(std::true_type{}, DecayChoice<Decay::kNone>{}); break;
      case Decay::kCoupled: run_full_tiles(std::true_type{}, DecayChoice<Decay::kCoupled>{}); break;
      case Decay::kDecoupled: run_full_tiles(std::true_type{}, DecayChoice<Decay::kDecoupled>{}); break;
      case Decay::kSelect: run_full_tiles(std::true_type{}, DecayChoice<Decay::kSelect>{}); break;
    }
  }
  run_with_slopes(full_tiles);
}

// The step of a rule with a ring, a tile at a time: slots outside, elements inside, so that the loops vectorise.
template <class Isa, class Rule, class Hyper, class Param, class State>
void ring_kernel(const TensorStep& tensor, const Range& range) {
  const Rule rule(*static_cast<const Hyper*>(tensor.hyper), tensor.step);
  const UpdateScalars<Real<Param>> scalars(tensor.scalars);
  const bool draws = tensor.threshold != 0 && tensor.threshold != kKeepAll;
  TileKeeps tile_keeps;
  if (!draws) std::memset(&tile_keeps, tensor.threshold == 0 ? 0 : -1, sizeof(tile_keeps));
  const int32_t* const keeps = tile_keeps.row[0];
  for (int64_t begin = 0; begin < range.count; begin += kTile) {
    Param* const params = static_cast<Param*>(range.param) + begin;
    const Param* const grads = static_cast<const Param*>(range.grad) + begin;
    State* const ring = static_cast<State*>(range.states[0]) + begin;
    const int count = static_cast<int>(std::min(kTile, range.count - begin));
    State* const newest = ring + rule.slot * range.whole_count;
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) {
      newest[i] = from_real<State>(decayed_grad<Decay::kSelect>(scalars, to_real(params[i]), to_real(grads[i])));
    }
    alignas(64) Real<Param> mean[kTile];
    for (int i = 0; i < count; ++i) mean[i] = to_real(ring[i]);
    for (int64_t number = 1; number < rule.filled; ++number) {
      const State* const slot = ring + number * range.whole_count;
      const Real<Param> weight = Rule::weight(number);
      for (int i = 0; i < count; ++i) mean[i] = Rule::include(mean[i], to_real(slot[i]), weight);
    }
    if (draws) draw_tile<Isa>(tensor.key, tensor.threshold, range.first_tile + begin / kTile, tile_keeps);
    Real<Param>* const terms = mean;  // of the slope, in their place
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) {
      const Param old_param = params[i];
      const Param new_param = from_real<Param>(moved_param<Decay::kSelect>(scalars, to_real(old_param), mean[i]));
      const Param stored = keeps[i] < 0 ? new_param : old_param;
      params[i] = stored;
      terms[i] = slope_term(to_real(grads[i]), to_real(old_param), to_real(stored));
    }
    if (!range.slopes) continue;
    Real<Param> lanes[kLanes] = {};
    for (int i = 0; i < count; ++i) lanes[i % kLanes] = lanes[i % kLanes] + terms[i];
    range.slopes[begin / kTile] = tile_slope<Param>(lanes);
  }
}

template <class Isa, class Rule, class Hyper, class Param, class State>
constexpr StepKernel instance() {
  if constexpr (kHasRing<Rule>) {
    return ring_kernel<Isa, Rule, Hyper, Param, State>;
  } else {
    return step_kernel<Isa, Rule, Hyper, Param, State>;
  }
}

// The kernel of a rule for a pair of storage types; null where the pair is not offered.
template <class Isa, template <class> class Rule, class Hyper>
StepKernel kernel_for(Dtype param, Dtype state) {
  switch (param) {
    case Dtype::kFloat:
      return state == Dtype::kFloat ? instance<Isa, Rule<float>, Hyper, float, float>() : nullptr;
    case Dtype::kDouble:
      return state == Dtype::kDouble ? instance<Isa, Rule<double>, Hyper, double, double>() : nullptr;
    case Dtype::kBFloat16:
      return state == Dtype::kFloat      ? instance<Isa, Rule<float>, Hyper, BFloat16, float>()
             : state == Dtype::kBFloat16 ? instance<Isa, Rule<float>, Hyper, BFloat16, BFloat16>()
                                         : nullptr;
    case Dtype::kHalf:
      return state == Dtype::kFloat  ? instance<Isa, Rule<float>, Hyper, Half, float>()
             : state == Dtype::kHalf ? instance<Isa, Rule<float>, Hyper, Half, Half>()
                                     : nullptr;
  }
  return nullptr;
}

}  // namespace lrt::cpu
