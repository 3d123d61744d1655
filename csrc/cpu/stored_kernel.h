// The CPU step of the most usual kinds of storage in 16 bits, whose rows are brought to float32, stepped and rounded in
// registers, without the buffers of stage.h (docs/speed.md has what that saves).
#pragma once

#include <iterator>
#include <utility>

#include "cpu/stage_kernel.h"
#include "cpu/stored_row.h"

namespace lrt::cpu {

// Masters with bfloat16 gradients, and mirrors where they are offloaded; bfloat16 parameters with float32 states, and
// what is kept of them beside; states in bfloat16, rounded stochastically.
constexpr Dtype kF32 = Dtype::kFloat, kBf16 = Dtype::kBFloat16;
constexpr StoredAs kInRegisters[] = {
    {.param = kF32, .grad = kBf16, .state = kF32},
    {.param = kF32, .grad = kBf16, .state = kF32, .mirror = kBf16},
    {.param = kF32, .grad = kBf16, .state = kF32, .mirror = kBf16, .changes = true},
    {.param = kBf16, .grad = kBf16, .state = kF32, .changes = true},
    {.param = kBf16, .grad = kBf16, .state = kF32, .stochastic = true},
    {.param = kBf16, .grad = kBf16, .state = kF32, .split = true},
    {.param = kF32, .grad = kF32, .state = kBf16, .stochastic_states = true},
    {.param = kBf16, .grad = kBf16, .state = kBf16, .stochastic = true, .stochastic_states = true},
};

// Of which of them that is faster: with 16 registers not of masters, and with instructions of 128 bits of none.
template <class Isa>
constexpr bool steps_in_registers(const StoredAs& as) {
  return std::is_same_v<Isa, Avx512> || (std::is_same_v<Isa, Avx2> && as.grad == as.param);
}

template <Dtype kDtype>
using StorageOf = std::conditional_t<kDtype == kBf16, BFloat16, float>;

template <bool kStochastic>
LRT_HD uint32_t to_upper_half(float x, uint32_t word, uint32_t multiplier) {
  return kStochastic ? stochastically_rounded_to_upper_half(x, rounding_bits(word, multiplier))
                     : rounded_to_upper_half(x);
}
// Whether another bfloat16 is in the upper half, as a sign.
LRT_HD int32_t differ(uint32_t stored, uint32_t old) { return (stored ^ old) < 0x10000u ? 0 : -1; }

// Row `row` of a tile, a whole one, from element `element` of the tensor on. `words` are those of the row, if it is
// rounded by any; the signs of `changed` say of which elements the stored bits are others now.
template <int kKind, Decay kDecay, class Rule, int... K>
LRT_HD void step_stored_row(const Rule& rule, const UpdateScalars<float>& scalars, const Range& range, int64_t element,
                            int row, const int32_t* keeps, const uint32_t* words, int32_t* changed,
                            std::integer_sequence<int, K...>) {
  constexpr StoredAs kAs = kInRegisters[kKind];
  using Param = StorageOf<kAs.param>;
  using Grad = StorageOf<kAs.grad>;
  using State = StorageOf<kAs.state>;
  const Stage& stage = *range.stage;
  Param* const params = static_cast<Param*>(range.param) + element;
  const Grad* const grads = static_cast<const Grad*>(range.grad) + element;
  State* const states[kMaxStates] = {static_cast<State*>(range.states[K]) + element...};
  int16_t* const lows = kAs.split ? stage.low + element : nullptr;
  BFloat16* const mirrors = kAs.mirror == kBf16 ? static_cast<BFloat16*>(stage.mirror) + element : nullptr;
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i) {
    float state[kMaxStates] = {to_real(states[K][i])...};
    const Param old_param = params[i];
    float old;
    if constexpr (kAs.split) {
      old = joined(old_param, lows[i]);
    } else {
      old = to_real(old_param);
    }
    const float moved = update<kDecay>(rule, scalars, old, to_real(grads[i]), state);
    const uint32_t word = kAs.rounds() ? rounding_word(words[i], row) : 0;
    if constexpr (kAs.state == kF32) {
      ((states[K][i] = state[K]), ...);
    } else {
      ((states[K][i] = of_upper_half(to_upper_half<kAs.stochastic_states>(state[K], word, kStateMultipliers[K]))), ...);
    }
    if constexpr (kAs.param == kF32) {
      params[i] = keeps[i] < 0 ? moved : old_param;
    } else if constexpr (kAs.split) {
      const Split parts = split(moved);
      params[i] = kept_bits(keeps[i], parts.high, old_param);
      lows[i] = kept_bits(keeps[i], parts.low, lows[i]);
    } else {
      const uint32_t before = in_upper_half(old_param);
      const uint32_t after = select(keeps[i], to_upper_half<kAs.stochastic>(moved, word, kParamMultiplier), before);
      params[i] = of_upper_half(after);
      if constexpr (kAs.changes) changed[i] = differ(after, before);
    }
    if constexpr (kAs.mirror == kBf16) {
      const uint32_t before = in_upper_half(mirrors[i]);
      const uint32_t after = select(keeps[i], rounded_to_upper_half(moved), before);
      mirrors[i] = of_upper_half(after);
      if constexpr (kAs.changes) changed[i] = differ(after, before);
    }
  }
}

template <int kKind, Hint kHint, class Rule>
LRT_HD void ask_stored_row(const Range& range, int64_t element, int64_t bytes) {
  constexpr StoredAs kAs = kInRegisters[kKind];
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
  constexpr StoredAs kAs = kInRegisters[kKind];
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<float> scalars(list.scalars);
  const Prefetch prefetch = tensor.prefetch;
  const DrawnRange drawn(list, tensor, range, kAs.rounds());
  TileDraws draws;
  draw_first_tile<Isa>(drawn, draws);
  alignas(64) int32_t changed[kLanes];
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
      step_stored_row<kKind, kDecay>(rule, scalars, range, element, row, keeps + row * kLanes, words.word[row / 2],
                                     changed, std::make_integer_sequence<int, Rule::kStates>{});
      if (kAs.changes) mark_row<Isa>(changed, element, kLanes, range.stage->changes);
    }
  }
}

// A range of a tensor that is stored otherwise than it is stepped.
template <class Isa, class Rule, class Hyper>
void run_stored(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const int64_t whole = range.count / kTile * kTile;
  const auto run_as = [&]<int kKind>() {
    constexpr StoredAs kAs = kInRegisters[kKind];
    if constexpr (!steps_in_registers<Isa>(kAs)) {
      return false;
    } else {
      if (range.stage->as != kAs) return false;
      with_decay(decay_of(UpdateScalars<float>(list.scalars)), [&]<Decay kDecay>() {
        if constexpr (kDecay != Decay::kSelect || kOneDecay)
          run_stored_tiles<kKind, kDecay, Isa, Rule, Hyper>(list, tensor, range);
      });
      return true;
    }
  };
  const auto run_whole_tiles = [&]<int... I>(std::integer_sequence<int, I...>) {
    return (run_as.template operator()<I>() || ...);
  };
  Range rest = range;
  if (whole != 0 && !range.slopes && !range.stage->map &&
      run_whole_tiles(std::make_integer_sequence<int, std::size(kInRegisters)>{})) {
    rest.first_tile += whole / kTile;
    rest.stage_begin += whole;
    rest.count -= whole;
    if (rest.keeps) rest.keeps += whole;
  }
  if (rest.count != 0) run_staged<Isa, Rule, Hyper>(list, tensor, rest);
}

}  // namespace lrt::cpu
