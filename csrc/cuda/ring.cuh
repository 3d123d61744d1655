// The step of a rule with a ring (core/update.h), in the place of step_kernel.cuh's step_elements.
#pragma once

#include "cuda/chunk.cuh"

namespace lrt::cuda {

// kCount consecutive elements of every slot.
template <class Param, class State, int kCount, bool kCentralize, class Rule>
  requires kHasRing<Rule>
LRT_DEVICE void step_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, const uint32_t (&bits)[kCount],
                              Real<Param> (&slopes)[kCount]) {
  const auto& scalars = chunk.shared.scalars;
  Vector<Param, kCount>& stored = vector_at<Param, kCount>(chunk.row.param, begin);
  Vector<Param, kCount> params = stored;
  const Vector<Param, kCount> stored_grads = vector_at<Param, kCount>(chunk.row.grad, begin);
  const Vector<Param, kCount> grads = seen_grads<Param, kCount, kCentralize>(chunk, begin, stored_grads);
  Vector<State, kCount> newest;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    newest.value[e] =
        from_real<State>(decayed_grad<Decay::kSelect>(scalars, to_real(params.value[e]), to_real(grads.value[e])));
  }
  const auto slot = [&](int64_t number) -> Vector<State, kCount>& {
    return vector_at<State, kCount>(chunk.row.states[0], number * chunk.row.numel + begin);
  };
  slot(chunk.rule.slot) = newest;  // and read again below, from the cache, as the thread's own
  Real<Param> mean[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) mean[e] = to_real(slot(0).value[e]);
#pragma unroll 4
  for (int64_t number = 1; number < chunk.rule.filled; ++number) {
    const Vector<State, kCount> gradients = slot(number);
    const Real<Param> weight = Rule::weight(number);
#pragma unroll
    for (int e = 0; e < kCount; ++e) mean[e] = Rule::include(mean[e], to_real(gradients.value[e]), weight);
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const Real<Param> param = to_real(params.value[e]);
    const Real<Param> updated = moved_param<Decay::kSelect>(scalars, param, mean[e]);
    if (bits[e] < chunk.shared.word_threshold) params.value[e] = from_real<Param>(updated);
    slopes[e] = slopes[e] + slope_term(to_real(stored_grads.value[e]), param, to_real(params.value[e]));
  }
  stored = params;
}

}  // namespace lrt::cuda
