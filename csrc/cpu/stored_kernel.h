// The CPU step of the most usual kinds of storage in 16 bits: a row at a time is brought to float32, stepped, rounded
// and stored by code that knows its kind, without the tiles of stage.h (docs/speed.md has what that saves).
#pragma once

#include <iterator>
#include <type_traits>
#include <utility>

#include "cpu/stage_kernel.h"
#include "cpu/stored_row.h"
#include "cpu/update_row.h"
#include "cpu/upper_halves.h"

namespace lrt::cpu {

// Masters with bfloat16 gradients, and mirrors where they are offloaded; bfloat16 parameters with float32 states, and
// what is kept of them beside; states in bfloat16, rounded stochastically.
constexpr Dtype kF32 = Dtype::kFloat, kBf16 = Dtype::kBFloat16;
constexpr StoredAs kByRows[] = {
    {.param = kF32, .grad = kBf16, .state = kF32},
    {.param = kF32, .grad = kBf16, .state = kF32, .mirror = kBf16},
    {.param = kF32, .grad = kBf16, .state = kF32, .mirror = kBf16, .changes = true},
    {.param = kBf16, .grad = kBf16, .state = kF32, .changes = true},
    {.param = kBf16, .grad = kBf16, .state = kF32, .stochastic = true},
    {.param = kBf16, .grad = kBf16, .state = kF32, .split = true},
    {.param = kF32, .grad = kF32, .state = kBf16, .stochastic_states = true},
    {.param = kBf16, .grad = kBf16, .state = kBf16, .stochastic = true, .stochastic_states = true},
};

template <Dtype kDtype>
using StorageOf = std::conditional_t<kDtype == kBf16, BFloat16, float>;

// A row in float32: in memory, or brought to `own`.
template <class Isa, class Stored>
LRT_HD auto* real_row(Stored* row, float* own) {
  if constexpr (std::is_same_v<std::remove_const_t<Stored>, float>) {
    return row;
  } else {
    load_upper_halves<Isa>(row, own);
    return own;
  }
}
LRT_HD float* joined_row(const BFloat16* high, const int16_t* low, float* own) {
  for (int i = 0; i < kLanes; ++i) own[i] = joined(high[i], low[i]);
  return own;
}

// Row `row` of a tile, a whole one, from element `element` of the tensor on. `words` are those of the row, if it is
// rounded by any. One loop for each thing that is done: in one for all GCC steps as many elements as there are numbers
// of 16 bits in a register, and 16 registers do not hold them.
template <class Isa, int kKind, Decay kDecay, class Rule, int... K>
LRT_HD void step_stored_row(const Rule& rule, const UpdateScalars<float>& scalars, const Range& range, int64_t element,
                            int row, const int32_t* keeps, const uint32_t* words,
                            std::integer_sequence<int, K...> numbers) {
  constexpr StoredAs kAs = kByRows[kKind];
  using State = StorageOf<kAs.state>;
  const Stage& stage = *range.stage;
  auto* const stored = static_cast<StorageOf<kAs.param>*>(range.param) + element;
  auto* const stored_grads = static_cast<const StorageOf<kAs.grad>*>(range.grad) + element;
  State* const stored_states[kMaxStates] = {static_cast<State*>(range.states[K]) + element...};
  alignas(64) float own_params[kLanes], own_grads[kLanes];
  [[maybe_unused]] alignas(64) float own_states[kMaxStates][kLanes];  // of a rule that has any
  float* params;
  if constexpr (kAs.split) {
    params = joined_row(stored, stage.low + element, own_params);
  } else {
    params = real_row<Isa>(stored, own_params);
  }
  const float* const grads = real_row<Isa>(stored_grads, own_grads);
  float* const states[kMaxStates] = {real_row<Isa>(stored_states[K], own_states[K])...};
  update_row<kDecay, Slopes::kNone, false>(rule, scalars, params, grads, grads, states, kLanes, keeps, 0.0f, nullptr,
                                           numbers);

  alignas(64) uint32_t rounded[kLanes];
  const auto round = [&]<bool kStochastic>(const float* reals, uint32_t multiplier) __attribute__((always_inline)) {
    return rounded_row<Isa, kStochastic>(reals, row, words, multiplier, rounded);
  };
  if constexpr (kAs.state == kBf16) {
    static_assert(kAs.stochastic_states);
    (store_rounded_row<Isa>(states[K], row, words, kStateMultipliers[K], stored_states[K]), ...);
  }
  uint64_t changed = 0;
  if constexpr (kAs.split) {
    alignas(64) uint32_t lows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const SplitWords parts = split_words(params[i]);
      rounded[i] = parts.high;
      lows[i] = parts.low;
    }
    changed = store_kept_upper_halves<Isa>(rounded, keeps, stored);
    store_kept_upper_halves<Isa>(lows, keeps, stage.low + element);
  } else if constexpr (kAs.param == kBf16) {
    changed = store_kept_upper_halves<Isa>(round.template operator()<kAs.stochastic>(params, kParamMultiplier), keeps,
                                           stored);
  } else if constexpr (kAs.mirror == kBf16) {
    changed = store_kept_upper_halves<Isa>(round.template operator()<false>(params, 0), keeps,
                                           static_cast<BFloat16*>(stage.mirror) + element);
  }
  if constexpr (kAs.changes) mark_row(changed, element, kLanes, stage.changes);
}

template <int kKind, Hint kHint, class Rule>
LRT_HD void ask_stored_row(const Range& range, int64_t element, int64_t bytes) {
  constexpr StoredAs kAs = kByRows[kKind];
  const auto ahead = [=]<class T>(const T* base) { ask_row_ahead<kHint>(base + element, bytes); };
  ahead(static_cast<const StorageOf<kAs.param>*>(range.param));
  ahead(static_cast<const StorageOf<kAs.grad>*>(range.grad));
  for (int k = 0; k < Rule::kStates; ++k) ahead(static_cast<const StorageOf<kAs.state>*>(range.states[k]));
  if (kAs.mirror == kBf16) ahead(static_cast<const BFloat16*>(range.stage->mirror));
  if (kAs.split) ahead(range.stage->low);
}

// The whole tiles of a range.
template <int kKind, Decay kDecay, class Isa, class Rule, class Hyper>
__attribute__((noinline)) void run_stored_tiles(const ListStep& list, const TensorStep& tensor, const Range& range) {
  constexpr StoredAs kAs = kByRows[kKind];
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<float> scalars(list.scalars);
  const Prefetch prefetch = tensor.prefetch;
  const DrawnRange drawn(list, tensor, range, kAs.rounds());
  TileDraws draws;
  draw_first_tile<Isa>(drawn, draws);
  for (int64_t t = 0; t < range.count / kTile; ++t) {
    const int32_t* const keeps = draws.keeps_of(drawn, t);
    const TileWords& words = draws.words[t % 2];
    for (int row = 0; row < 8; ++row) {
      draw_next_tile<Isa>(drawn, t, row, draws);
      const int64_t element = range.stage_begin + t * kTile + row * kLanes;
      switch (prefetch.hint) {
        case Hint::kNone: break;
        case Hint::kSecond: ask_stored_row<kKind, Hint::kSecond, Rule>(range, element, prefetch.bytes); break;
        case Hint::kFirst:
        case Hint::kWrite: ask_stored_row<kKind, Hint::kFirst, Rule>(range, element, prefetch.bytes); break;
      }
      step_stored_row<Isa, kKind, kDecay>(rule, scalars, range, element, row, keeps + row * kLanes, words.word[row / 2],
                                          std::make_integer_sequence<int, Rule::kStates>{});
    }
  }
}

// A range of a tensor that is stored otherwise than it is stepped.
template <class Isa, class Rule, class Hyper>
void run_stored(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const int64_t whole = range.count / kTile * kTile;
  const Decay decay = decay_of(UpdateScalars<float>(list.scalars));
  const auto run_as = [&]<int kKind>() {
    if (range.stage->as != kByRows[kKind]) return false;
    with_decay<Rule>(decay,
                     [&]<Decay kDecay>() { run_stored_tiles<kKind, kDecay, Isa, Rule, Hyper>(list, tensor, range); });
    return true;
  };
  const auto run_whole_tiles = [&]<int... I>(std::integer_sequence<int, I...>) {
    return (run_as.template operator()<I>() || ...);
  };
  Range rest = range;
  if (whole != 0 && !range.slopes && !range.stage->map && has_loops<Rule>(decay) &&
      run_whole_tiles(std::make_integer_sequence<int, std::size(kByRows)>{})) {
    rest.first_tile += whole / kTile;
    rest.stage_begin += whole;
    rest.count -= whole;
    if (rest.keeps) rest.keeps += whole;
  }
  if (rest.count != 0) run_staged<Isa, Rule, Hyper>(list, tensor, rest);
}

}  // namespace lrt::cpu
