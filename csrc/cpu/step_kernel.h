// The CPU step kernel: load -> update -> keep -> store over a tile-aligned range of one tensor.
// A template over (instruction set, rule, storage types), instantiated by rule_kernels.h.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/stage_kernel.h"
#include "cpu/stored_kernel.h"

namespace lrt::cpu {

// Two neighbouring bfloat16 as one word: widened, rounded and stored without a shuffle, which halves what that costs.
using Pair = uint32_t __attribute__((may_alias, aligned(2)));
struct Halves {
  float value[2];
  Halves() = default;
  explicit LRT_HD Halves(uint32_t pair) : value{bit_cast<float>(pair << 16), bit_cast<float>(pair & 0xffff0000u)} {}
};
LRT_HD uint32_t join(uint32_t lower, uint32_t upper) { return lower >> 16 | (upper & 0xffff0000u); }

template <Slopes kSlopes, class Param, class State>
constexpr bool kPairs = kSlopes == Slopes::kNone && std::is_same_v<Param, BFloat16> && std::is_same_v<State, BFloat16>;

// update_row of a whole row of bfloat16 with states in bfloat16, without slopes.
template <Decay kDecay, class Rule, int... K>
LRT_HD void update_pairs(const Rule& rule, const UpdateScalars<float>& scalars, BFloat16* params, const BFloat16* grads,
                         BFloat16* const (&states)[kMaxStates], const int32_t* keeps,
                         std::integer_sequence<int, K...>) {
  Pair* const param_pairs = reinterpret_cast<Pair*>(params);
  const Pair* const grad_pairs = reinterpret_cast<const Pair*>(grads);
  Pair* const state_pairs[kMaxStates] = {reinterpret_cast<Pair*>(states[K])...};
#pragma GCC ivdep
  for (int i = 0; i < kLanes / 2; ++i) {
    const Halves param(param_pairs[i]), grad(grad_pairs[i]);
    const Halves old_states[kMaxStates] = {Halves(state_pairs[K][i])...};
    float state[2][kMaxStates] = {{old_states[K].value[0]...}, {old_states[K].value[1]...}};
    const float moved[2] = {update<kDecay>(rule, scalars, param.value[0], grad.value[0], state[0]),
                            update<kDecay>(rule, scalars, param.value[1], grad.value[1], state[1])};
    ((state_pairs[K][i] = join(rounded_to_upper_half(state[0][K]), rounded_to_upper_half(state[1][K]))), ...);
    const uint32_t lower = select(keeps[2 * i], rounded_to_upper_half(moved[0]), bit_cast<uint32_t>(param.value[0]));
    const uint32_t upper =
        select(keeps[2 * i + 1], rounded_to_upper_half(moved[1]), bit_cast<uint32_t>(param.value[1]));
    param_pairs[i] = join(lower, upper);
  }
}

// Asks for the lines that a later row will need.
template <Hint kHint, Hint kHintToRead, class Rule, class Param, class State>
LRT_HD void ask_rows(const Prefetch& prefetch, const Param* params, const Param* grads,
                     State* const (&states)[kMaxStates]) {
  ask_row_ahead<kHint>(params, prefetch.bytes);
  ask_row_ahead<kHintToRead>(grads, prefetch.grad_bytes ? prefetch.grad_bytes : prefetch.bytes);
  for (int k = 0; k < Rule::kStates; ++k) ask_row_ahead<kHint>(states[k], prefetch.bytes);
}

// The row that begins at element `begin` of a range.
template <Decay kDecay, Slopes kSlopes, bool kCentralizes, class Rule, class Param, class State>
LRT_HD void step_row(const Rule& rule, const UpdateScalars<Real<Param>>& scalars, const Range& range,
                     const Prefetch& prefetch, int64_t begin, int count, const int32_t* keeps, Real<Param>* slopes) {
  Param* const params = static_cast<Param*>(range.param) + begin;
  const Param* const grads = static_cast<const Param*>(range.grad) + begin;
  const Param* const stored_grads = range.stored_grad ? static_cast<const Param*>(range.stored_grad) + begin : grads;
  State* states[kMaxStates] = {};
  for (int k = 0; k < Rule::kStates; ++k) states[k] = static_cast<State*>(range.states[k]) + begin;
  switch (prefetch.hint) {
    case Hint::kNone: break;
    case Hint::kFirst: ask_rows<Hint::kFirst, Hint::kFirst, Rule>(prefetch, params, stored_grads, states); break;
    case Hint::kSecond: ask_rows<Hint::kSecond, Hint::kSecond, Rule>(prefetch, params, stored_grads, states); break;
    case Hint::kWrite: ask_rows<Hint::kWrite, Hint::kFirst, Rule>(prefetch, params, stored_grads, states); break;
  }
  constexpr auto numbers = std::make_integer_sequence<int, Rule::kStates>{};
  if constexpr (!kCentralizes && kPairs<kSlopes, Param, State>) {
    if (count == kLanes) return update_pairs<kDecay>(rule, scalars, params, grads, states, keeps, numbers);
  }
  const Real<Param> mean = kCentralizes ? row_mean<Param>(range, begin / kLanes) : Real<Param>(0);
  update_row<kDecay, kSlopes, kCentralizes>(rule, scalars, params, grads, stored_grads, states, count, keeps, mean,
                                            slopes, numbers);
}

// The whole tiles of a range. `keeps[0]` holds the decisions of the first; without a mask both hold those of all.
template <class Isa, bool kMasked, Decay kDecay, Slopes kSlopes, bool kCentralizes, class Rule, class Param,
          class State>
LRT_HD void run_full_tiles(const Rule& rule, const UpdateScalars<Real<Param>>& scalars, const ListStep& list,
                           const TensorStep& tensor, const Range& range, TileKeeps (&keeps)[2]) {
  const int64_t tiles = range.count / kTile;
  const KeepStream stream = keep_stream(list, tensor);
  const Prefetch prefetch = tensor.prefetch;
  alignas(64) Real<Param> slopes[2][kLanes];
  const auto store_slope = [&](int64_t tile) __attribute__((always_inline)) {
    if constexpr (kSlopes != Slopes::kNone) range.slopes[tile] = tile_slope<Isa, Param>(slopes[tile % 2]);
  };
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const TileKeeps& now = keeps[tile % 2];
    TileKeeps& next = keeps[(tile + 1) % 2];
    if constexpr (kSlopes != Slopes::kNone) std::memset(slopes[tile % 2], 0, sizeof(slopes[0]));
    for (int r = 0; r < 8; r += kRowsBetweenDraws) {
      // The next tile's draws, some pieces between some rows of this one: loads stay in flight meanwhile.
      for (int lane = 8 * r; kMasked && lane < 8 * (r + kRowsBetweenDraws); lane += kPiece) {
        draw_piece<Isa>(stream, list.threshold, range.first_tile + tile + 1, lane, next);
      }
      for (int p = r; p < r + kRowsBetweenDraws; ++p) {
        step_row<kDecay, kSlopes, kCentralizes, Rule, Param, State>(
            rule, scalars, range, prefetch, tile * kTile + p * kLanes, kLanes, now.row[p], slopes[tile % 2]);
      }
      if (r == 0 && tile != 0) store_slope(tile - 1);  // a chain of additions, whose terms are not waited for
    }
  }
  if (tiles != 0) store_slope(tiles - 1);
}

// The types that most models have. A step of theirs has loops for each way in which weight decay enters, and whole-tile
// loops for slopes and for centralized gradients. Those of float16 and float64 have none: run_any_tile does that of
// theirs, and Adam's object is an eighth smaller.
template <class Param>
constexpr bool kIsUsual = std::is_same_v<Param, float> || std::is_same_v<Param, BFloat16>;
// What run_any_tile sums where no metrics are asked for.
template <class Param>
constexpr Slopes kAtEnds = kIsUsual<Param> ? Slopes::kOfStored : Slopes::kNone;

// A tile or a part of it, of any step: what a range may end with, the slopes of a gradient that is centralized, and
// metrics.
// Nothing is asked for ahead: at an end the lines would be lost. The constants come by value, or the loops above would
// find them in memory, where what they store might change them.
template <class Isa, Slopes kSlopes, class Rule, class Param, class State>
__attribute__((noinline)) void run_any_tile(Rule rule, UpdateScalars<Real<Param>> scalars, const Range& range,
                                            int64_t tile, const int32_t* keeps) {
  constexpr int kCount = kSlopes == Slopes::kAndMetrics ? kSums : 1;
  Real<Param> sums[kCount][kLanes] = {};
  const int64_t first = tile * kTile, end = std::min(range.count, first + kTile);
  for (int64_t begin = first; begin < end; begin += kLanes) {
    step_row<Decay::kSelect, kSlopes, true, Rule, Param, State>(rule, scalars, range, Prefetch{}, begin,
                                                                static_cast<int>(std::min(kLanes, end - begin)),
                                                                keeps + (begin - first), sums[0]);
  }
  if (!range.slopes) return;
  for (int k = 0; k < (range.metrics_pitch ? kCount : 1); ++k) {
    range.slopes[k * range.metrics_pitch + tile] = tile_slope<Isa, Param>(sums[k]);
  }
}

// A range, with or without the slopes of its tiles.
template <class Isa, Slopes kSlopes, class Rule, class Hyper, class Param, class State>
__attribute__((noinline)) void run_range(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<Real<Param>> scalars(list.scalars);
  TileKeeps keeps[2];
  const auto full_tiles = [&]<bool kMasked, Decay kDecay, bool kCentralizes = false>() __attribute__((always_inline)) {
    run_full_tiles<Isa, kMasked, kDecay, kSlopes, kCentralizes, Rule, Param, State>(rule, scalars, list, tensor, range,
                                                                                    keeps);
  };
  const bool masked = is_masked(list.threshold);
  decide_tile<Isa>(keep_stream(list, tensor), list.threshold, range.first_tile, keeps[0]);
  if (!masked) keeps[1] = keeps[0];
  constexpr bool kCentralizes = kSlopes == Slopes::kNone && kIsUsual<Param>;
  if (kCentralizes && range.row_means) {
    masked ? full_tiles.template operator()<true, Decay::kSelect, kCentralizes>()
           : full_tiles.template operator()<false, Decay::kSelect, kCentralizes>();
  } else if (!masked) {
    full_tiles.template operator()<false, Decay::kSelect>();
  } else if constexpr (kIsUsual<Param>) {
    with_decay<Rule>(decay_of(scalars), [&]<Decay kDecay>() __attribute__((always_inline)) {
      full_tiles.template operator()<true, kDecay>();
    });
  } else {
    full_tiles.template operator()<true, Decay::kSelect>();
  }
  const int64_t tile = range.count / kTile;
  if (range.count % kTile != 0)
    run_any_tile<Isa, kAtEnds<Param>, Rule, Param, State>(rule, scalars, range, tile, keeps[tile % 2].row[0]);
}

template <class Isa, Slopes kSlopes, class Rule, class Hyper, class Param, class State>
__attribute__((noinline)) void run_any_tiles(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<Real<Param>> scalars(list.scalars);
  const KeepStream stream = keep_stream(list, tensor);
  TileKeeps keeps;
  for (int64_t tile = 0; tile * kTile < range.count; ++tile) {
    if (!range.keeps) decide_tile<Isa>(stream, list.threshold, range.first_tile + tile, keeps);
    const int32_t* const own = range.keeps ? range.keeps + tile * kTile : keeps.row[0];
    run_any_tile<Isa, kSlopes, Rule, Param, State>(rule, scalars, range, tile, own);
  }
}

// A range whose decisions are given, without slopes.
template <class Isa, class Rule, class Hyper, class Param, class State>
__attribute__((noinline)) void run_given(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<Real<Param>> scalars(list.scalars);
  const auto row = [&](int64_t begin, int count) __attribute__((always_inline)) {
    step_row<Decay::kSelect, Slopes::kNone, false, Rule, Param, State>(rule, scalars, range, tensor.prefetch, begin,
                                                                       count, range.keeps + begin, nullptr);
  };
  int64_t begin = 0;
  for (; begin + kLanes <= range.count; begin += kLanes) row(begin, kLanes);
  if (begin != range.count) row(begin, static_cast<int>(range.count - begin));
}

template <class Isa, class Rule, class Hyper, class Param, class State>
void step_kernel(const ListStep& list, const TensorStep& tensor, const Range& range) {
  if constexpr (std::is_same_v<Param, float> && std::is_same_v<State, float>) {
    if (range.stage) return run_stored<Isa, Rule, Hyper>(list, tensor, range);
  }
  if (range.keeps && !range.slopes && !range.row_means) {
    return run_given<Isa, Rule, Hyper, Param, State>(list, tensor, range);
  }
  if (range.slopes && (range.metrics_pitch || !kIsUsual<Param>)) {
    return run_any_tiles<Isa, Slopes::kAndMetrics, Rule, Hyper, Param, State>(list, tensor, range);
  }
  if constexpr (!kIsUsual<Param>) {
    if (!range.row_means) return run_range<Isa, Slopes::kNone, Rule, Hyper, Param, State>(list, tensor, range);
  } else if (has_loops<Rule>(decay_of(UpdateScalars<Real<Param>>(list.scalars)))) {
    if (!range.slopes && !range.keeps)
      return run_range<Isa, Slopes::kNone, Rule, Hyper, Param, State>(list, tensor, range);
    if (!range.stored_grad && !range.row_means && !range.keeps)
      return run_range<Isa, Slopes::kOfGrad, Rule, Hyper, Param, State>(list, tensor, range);
  }
  run_any_tiles<Isa, kAtEnds<Param>, Rule, Hyper, Param, State>(list, tensor, range);
}

}  // namespace lrt::cpu
