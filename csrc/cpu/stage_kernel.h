// The CPU step of a tensor that is stored otherwise than it is stepped (stage.h), a template over (instruction set,
// rule): rows are brought to float32, stepped by update_row.h, and stored. Draws are made between rows, as in
// step_kernel.h.
#pragma once

#include <algorithm>
#include <utility>

#include "core/rounding.h"
#include "cpu/lanes.h"
#include "cpu/stage.h"
#include "cpu/tile_slope.h"
#include "cpu/update_row.h"

namespace lrt::cpu {

template <class Isa, class Rule, class Hyper>
__attribute__((noinline)) void run_staged(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<float> scalars(list.scalars);
  const KeepStream key = keep_stream(list, tensor);
  const bool draws = is_masked(list.threshold) && !range.keeps;
  TileKeeps keeps[2];
  if (!range.keeps) decide_tile<Isa>(key, list.threshold, range.first_tile, keeps[0]);
  if (!draws) keeps[1] = keeps[0];
  StagedRows rows = {range, *range.stage, key, tensor.prefetch, Rule::kStates, {}, {}};
  const bool rounds = range.stage->rounds() && !range.stage->map;  // of a map's elements each is drawn alone
  const auto draw_rounding = [&](int64_t tile, int lane) __attribute__((always_inline)) {
    draw_words<Isa, kRoundingRounds>(key, Stream::kRounding, range.first_tile + tile, lane, rows.words[tile % 2]);
  };
  for (int lane = 0; rounds && lane < kLanes; lane += kPiece) draw_rounding(0, lane);
  for (int64_t tile = 0; tile * kTile < range.count; ++tile) {
    float sums[kSums][kLanes];
    if (range.slopes) std::fill_n(sums[0], kSums * kLanes, 0.0f);
    for (int r = 0; r < 8; ++r) {
      // The next tile's draws, between rows of this one.
      const bool piece = 8 * r % kPiece == 0;
      if (draws && piece) {
        draw_piece<Isa>(key, list.threshold, range.first_tile + tile + 1, 8 * r, keeps[(tile + 1) % 2]);
      }
      if (rounds && piece) draw_rounding(tile + 1, 8 * r);
      const int64_t begin = tile * kTile + r * kLanes;
      if (begin >= range.count) continue;
      const int32_t* const own = range.keeps ? range.keeps + begin : keeps[tile % 2].row[r];
      const int count = static_cast<int>(std::min(kLanes, range.count - begin));
      const StagedRow row = bring_row<Isa>(rows, begin, count);
      update_row<Decay::kSelect, Slopes::kNone, false>(rule, scalars, row.params, row.grads, row.grads, row.states,
                                                       count, own, 0.0f, nullptr,
                                                       std::make_integer_sequence<int, Rule::kStates>{});
      store_row<Isa>(rows, row, begin, count, own, range.slopes ? sums : nullptr);
    }
    for (int k = 0; range.slopes && k < (range.metrics_pitch ? kSums : 1); ++k) {
      range.slopes[k * range.metrics_pitch + tile] = tile_slope<Isa, float>(sums[k]);
    }
  }
}

}  // namespace lrt::cpu
