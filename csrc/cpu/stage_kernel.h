// The CPU step of a tensor that is stored otherwise than it is stepped (stage.h), a template over (instruction set,
// rule): rows are brought to float32, stepped by step_kernel.h's update_row, and stored. Draws are made between rows,
// as there.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/stage.h"
#include "cpu/tile_slope.h"
#include "cpu/update_row.h"
#include "cpu/work.h"

namespace lrt::cpu {

// The words of one tile that round the parameter, and each state.
struct RoundingWords {
  TileWords param, states[kMaxStates];
};

template <class Isa, class Rule>
LRT_HD void draw_rounding(const Stage& stage, const KeepStream& key, int64_t tile, RoundingWords& words) {
  if (stage.map) return;  // element by element, later
  if (stage.stochastic) draw_words<Isa, kRoundingRounds>(key, Stream::kRounding, tile, words.param);
  for (int k = 0; stage.stochastic_states && k < Rule::kStates; ++k) {
    draw_words<Isa, kRoundingRounds>(key, state_stream(k), tile, words.states[k]);
  }
}

// What a row is staged with.
struct RowBuffers {
  alignas(64) float param[kLanes], grad[kLanes], states[kMaxStates][kLanes], before[kLanes], after[kLanes];
  alignas(64) uint32_t bits[kLanes];
  alignas(64) int32_t changed[kLanes];
};

// Rows of a range, from its element `begin` on.
template <class Isa, class Rule>
class StagedRows {
 public:
  StagedRows(const Rule& rule, const UpdateScalars<float>& scalars, const KeepStream& key, const Range& range,
             const Prefetch& prefetch)
      : rule_(rule), scalars_(scalars), key_(key), range_(range), stage_(*range.stage), prefetch_(prefetch) {}

  void draw(int64_t tile) { draw_rounding<Isa, Rule>(stage_, key_, tile, words_); }

  LRT_HD void step(int64_t begin, int count, const int32_t* keeps, float (*sums)[kLanes]) {
    RowBuffers own;
    const int64_t element = range_.stage_begin + begin;
    ask(element);
    float* const params = bring_params(element, count, own);
    const float* const grads = real_row(stage_.grad, const_cast<void*>(range_.grad), element, count, own.grad);
    float* states[kMaxStates] = {};
    for (int k = 0; k < Rule::kStates; ++k) {
      states[k] = real_row(stage_.state, range_.states[k], element, count, own.states[k]);
    }
    const bool compares = sums || (stage_.changes && stage_.param == Dtype::kFloat && !stage_.mirror);
    if (compares) std::copy_n(params, count, own.before);
    update_row<Decay::kSelect, Slopes::kNone, false>(rule_, scalars_, params, grads, grads, states, count, keeps, 0.0f,
                                                     nullptr, std::make_integer_sequence<int, Rule::kStates>{});
    for (int k = 0; k < Rule::kStates && is_narrow(stage_.state); ++k) {
      const uint32_t* const bits =
          stage_.stochastic_states ? bits_of(words_.states[k], state_stream(k), begin, element, count, own) : nullptr;
      with_narrow(stage_.state, range_.states[k], element,
                  [&](auto* to) { round_row(own.states[k], bits, count, to); });
    }
    store_params(params, begin, element, count, keeps, own);
    if (stage_.changes) mark_row<Isa>(own.changed, element, count, stage_.changes);
    if (sums) add(params, grads, element, count, keeps, own, sums);
  }

 private:
  // Asks for the lines that a later row will need.
  LRT_HD void ask(int64_t element) const {
    const auto ahead = [&](const void* base, int64_t size) {
      const char* const p = static_cast<const char*>(base) + element * size + prefetch_.bytes;
      for (int64_t b = 0; b < kLanes * size; b += 64) ask_line(p + b);
    };
    if (prefetch_.hint == Hint::kNone) return;
    ahead(range_.param, is_narrow(stage_.param) ? 2 : 4);
    ahead(range_.grad, is_narrow(stage_.grad) ? 2 : 4);
    for (int k = 0; k < Rule::kStates; ++k) ahead(range_.states[k], is_narrow(stage_.state) ? 2 : 4);
    if (stage_.mirror) ahead(stage_.mirror, 2);
    if (stage_.low) ahead(stage_.low, 2);
  }
  LRT_HD void ask_line(const char* line) const {
    prefetch_.hint == Hint::kSecond ? lrt::cpu::ask<Hint::kSecond>(line) : lrt::cpu::ask<Hint::kFirst>(line);
  }

  LRT_HD float* bring_params(int64_t element, int count, RowBuffers& own) const {
    if (!stage_.low) return real_row(stage_.param, range_.param, element, count, own.param);
    join_row(static_cast<const BFloat16*>(range_.param) + element, stage_.low + element, count, own.param);
    return own.param;
  }

  LRT_HD const uint32_t* bits_of(const TileWords& words, Stream stream, int64_t begin, int64_t element, int count,
                                 RowBuffers& own) const {
    if (stage_.map) {
      draw_row(key_, stream, *stage_.map, element, count, own.bits);
    } else {
      row_of_words(words, static_cast<int>(begin / kLanes % 8), own.bits);
    }
    return own.bits;
  }

  LRT_HD void store_params(const float* params, int64_t begin, int64_t element, int count, const int32_t* keeps,
                           RowBuffers& own) const {
    int32_t* const changed = stage_.changes ? own.changed : nullptr;
    if (stage_.low) {
      split_kept_row(params, keeps, count, static_cast<BFloat16*>(range_.param) + element, stage_.low + element,
                     changed);
    } else if (is_narrow(stage_.param)) {
      const uint32_t* const bits =
          stage_.stochastic ? bits_of(words_.param, Stream::kRounding, begin, element, count, own) : nullptr;
      with_narrow(stage_.param, range_.param, element,
                  [&](auto* to) { round_kept_row(params, bits, keeps, count, to, changed); });
    } else if (stage_.mirror) {
      with_narrow(stage_.mirror_dtype, stage_.mirror, element,
                  [&](auto* to) { round_kept_row(params, nullptr, keeps, count, to, changed); });
    } else if (changed) {
      compare_row(own.before, params, count, changed);
    }
  }

  // What is stored is what is summed: of a 16-bit parameter without a master the rounded one.
  void add(const float* params, const float* grads, int64_t element, int count, const int32_t* keeps, RowBuffers& own,
           float (*sums)[kLanes]) const {
    const float* const after = stage_.low ? params : real_row(stage_.param, range_.param, element, count, own.after);
    for (int i = 0; i < count; ++i) {
      sums[kSlope][i] = sums[kSlope][i] + slope_term(grads[i], own.before[i], after[i]);
      add_metrics<float>(&sums[0][i], kLanes, keeps[i] < 0, own.before[i], after[i]);
    }
  }

  const Rule& rule_;
  const UpdateScalars<float>& scalars_;
  const KeepStream key_;
  const Range& range_;
  const Stage& stage_;
  const Prefetch prefetch_;
  RoundingWords words_;
};

template <class Isa, class Rule, class Hyper>
__attribute__((noinline)) void run_staged(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<float> scalars(list.scalars);
  const KeepStream key = keep_stream(list, tensor);
  const bool draws = is_masked(list.threshold) && !range.keeps;
  TileKeeps keeps[2];
  if (!range.keeps) decide_tile<Isa>(key, list.threshold, range.first_tile, keeps[0]);
  if (!draws) keeps[1] = keeps[0];
  StagedRows<Isa, Rule> rows(rule, scalars, key, range, tensor.prefetch);
  for (int64_t tile = 0; tile * kTile < range.count; ++tile) {
    rows.draw(range.first_tile + tile);
    float sums[kSums][kLanes];
    if (range.slopes) std::fill_n(sums[0], kSums * kLanes, 0.0f);
    for (int r = 0; r < 8; ++r) {
      // The next tile's draws, between rows of this one.
      for (int lane = 8 * r; draws && r % (kPiece / 8) == 0 && lane < 8 * r + kPiece; lane += kPiece) {
        draw_piece<Isa>(key, list.threshold, range.first_tile + tile + 1, lane, keeps[(tile + 1) % 2]);
      }
      const int64_t begin = tile * kTile + r * kLanes;
      if (begin >= range.count) continue;
      const int32_t* const own = range.keeps ? range.keeps + begin : keeps[tile % 2].row[r];
      rows.step(begin, static_cast<int>(std::min(kLanes, range.count - begin)), own, range.slopes ? sums : nullptr);
    }
    for (int k = 0; range.slopes && k < (range.metrics_pitch ? kSums : 1); ++k) {
      range.slopes[k * range.metrics_pitch + tile] = tile_slope<Isa, float>(sums[k]);
    }
  }
}

}  // namespace lrt::cpu
