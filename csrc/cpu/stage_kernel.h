// The CPU step of a tensor that is stored otherwise than it is stepped (stage.h), a template over (instruction set,
// rule): tiles are brought to float32, stepped by update_row.h, and stored. Draws are made between rows, as in
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
  StagedTiles tiles = {range, *range.stage, key, tensor.prefetch, Rule::kStates, {}};
  const bool rounds = range.stage->rounds() && !range.stage->map;  // of a map's elements each is drawn alone
  const auto draw_rounding = [&](int64_t tile, int lane) __attribute__((always_inline)) {
    draw_words<Isa, kRoundingRounds>(key, Stream::kRounding, range.first_tile + tile, lane, tiles.words[tile % 2]);
  };
  for (int lane = 0; rounds && lane < kLanes; lane += kPiece) draw_rounding(0, lane);
  for (int64_t t = 0; t * kTile < range.count; ++t) {
    const int64_t begin = t * kTile;
    const int count = static_cast<int>(std::min(kTile, range.count - begin));
    const int32_t* const own = range.keeps ? range.keeps + begin : keeps[t % 2].row[0];
    const StagedTile tile = bring_tile<Isa>(tiles, begin, count);
    for (int first = 0; first < kTile; first += kLanes) {
      // The next tile's draws, between rows of this one.
      const int lane = first / 8;
      if (draws && lane % kPiece == 0) {
        draw_piece<Isa>(key, list.threshold, range.first_tile + t + 1, lane, keeps[(t + 1) % 2]);
      }
      if (rounds && lane % kPiece == 0) draw_rounding(t + 1, lane);
      if (first >= count) continue;
      ask_next_tile<Isa>(tiles, begin + first);
      float* states[kMaxStates] = {};
      for (int k = 0; k < Rule::kStates; ++k) states[k] = tile.states[k] + first;
      update_row<Decay::kSelect, Slopes::kNone, false>(rule, scalars, tile.params + first, tile.grads + first,
                                                       tile.grads + first, states, kLanes, own + first, 0.0f, nullptr,
                                                       std::make_integer_sequence<int, Rule::kStates>{});
    }
    float sums[kSums][kLanes];
    if (range.slopes) std::fill_n(sums[0], kSums * kLanes, 0.0f);
    store_tile<Isa>(tiles, tile, begin, count, own, range.slopes ? sums : nullptr);
    for (int k = 0; range.slopes && k < (range.metrics_pitch ? kSums : 1); ++k) {
      range.slopes[k * range.metrics_pitch + t] = tile_slope<Isa, float>(sums[k]);
    }
  }
}

}  // namespace lrt::cpu
