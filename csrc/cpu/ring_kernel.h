// The CPU step of a rule with a ring (core/update.h); instantiated by rule_kernels.h.
#pragma once

#include <algorithm>

#include "core/sums.h"
#include "cpu/lanes.h"
#include "cpu/tile_slope.h"
#include "cpu/work.h"

namespace lrt::cpu {

// A tile at a time: slots outside, elements inside, so that the loops vectorise.
template <class Isa, class Rule, class Hyper, class Param, class State>
void ring_kernel(const ListStep& list, const TensorStep& tensor, const Range& range) {
  const Rule rule = rule_of<Rule, Hyper>(list, tensor);
  const UpdateScalars<Real<Param>> scalars(list.scalars);
  const KeepStream stream = keep_stream(list, tensor);
  TileKeeps tile_keeps;
  Param old_tile[kTile];
  for (int64_t begin = 0; begin < range.count; begin += kTile) {
    Param* const params = static_cast<Param*>(range.param) + begin;
    const Param* const grads = static_cast<const Param*>(range.grad) + begin;
    const Param* const stored_grads = range.stored_grad ? static_cast<const Param*>(range.stored_grad) + begin : grads;
    State* const ring = static_cast<State*>(range.states[0]) + begin;
    const int count = static_cast<int>(std::min(kTile, range.count - begin));
    State* const newest = ring + rule.slot * tensor.numel;
    for (int first = 0; first < count; first += kLanes) {
      const Real<Param> grad_mean = row_mean<Param>(range, (begin + first) / kLanes);
      const int last = std::min<int>(first + kLanes, count);
#pragma GCC ivdep
      for (int i = first; i < last; ++i) {
        const Param grad = centralized(grads[i], grad_mean);
        newest[i] = from_real<State>(decayed_grad<Decay::kSelect>(scalars, to_real(params[i]), to_real(grad)));
      }
    }
    alignas(64) Real<Param> mean[kTile];
    for (int i = 0; i < count; ++i) mean[i] = to_real(ring[i]);
    for (int64_t number = 1; number < rule.filled; ++number) {
      const State* const slot = ring + number * tensor.numel;
      const Real<Param> weight = Rule::weight(number);
      for (int i = 0; i < count; ++i) mean[i] = Rule::include(mean[i], to_real(slot[i]), weight);
    }
    if (!range.keeps) decide_tile<Isa>(stream, list.threshold, range.first_tile + begin / kTile, tile_keeps);
    const int32_t* const keeps = range.keeps ? range.keeps + begin : tile_keeps.row[0];
    Real<Param>* const terms = mean;  // of the slope, in their place
    Param* const old_params = range.metrics_pitch ? old_tile : nullptr;
    if (old_params) std::copy(params, params + count, old_params);
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) {
      const Param old_param = params[i];
      const Param new_param = from_real<Param>(moved_param<Decay::kSelect>(scalars, to_real(old_param), mean[i]));
      const Param stored = keeps[i] < 0 ? new_param : old_param;
      params[i] = stored;
      terms[i] = slope_term(to_real(stored_grads[i]), to_real(old_param), to_real(stored));
    }
    if (!range.slopes) continue;
    Real<Param> sums[kSums][kLanes] = {};
    for (int i = 0; i < count; ++i) {
      const int lane = i % kLanes;
      sums[kSlope][lane] = sums[kSlope][lane] + terms[i];
      if (old_params) add_metrics<Param>(&sums[0][lane], kLanes, keeps[i] < 0, old_params[i], params[i]);
    }
    for (int k = 0; k < (old_params ? kSums : 1); ++k) {
      range.slopes[k * range.metrics_pitch + begin / kTile] = tile_slope<Isa, Param>(sums[k]);
    }
  }
}

}  // namespace lrt::cpu
