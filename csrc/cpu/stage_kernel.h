// The CPU step of a tensor that is stored otherwise than it is stepped (stage.h), a template over (instruction set,
// rule): tiles are brought to float32, stepped by update_row.h, and stored.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/stage.h"
#include "cpu/tile_draws.h"
#include "cpu/tile_slope.h"
#include "cpu/update_row.h"

namespace lrt::cpu {

template <class Isa, class Rule, class Hyper>
__attribute__((noinline)) void run_staged(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<float> scalars(list.scalars);
  const bool rounds = range.stage->as.rounds() && !range.stage->map;  // of a map's elements each is drawn alone
  const DrawnRange drawn(list, tensor, range, rounds);
  TileDraws draws;
  draw_first_tile<Isa>(drawn, draws);
  StagedTiles tiles = {range, *range.stage, keep_stream(list, tensor), tensor.prefetch, Rule::kStates};
  for (int64_t t = 0; t * kTile < range.count; ++t) {
    const int64_t begin = t * kTile;
    const int count = static_cast<int>(std::min(kTile, range.count - begin));
    const int32_t* const own = draws.keeps_of(drawn, t);
    tiles.words = &draws.words[t % 2];
    const StagedTile tile = bring_tile<Isa>(tiles, begin, count);
    for (int first = 0; first < kTile; first += kLanes) {
      draw_next_tile<Isa>(drawn, t, first / kLanes, draws);
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
