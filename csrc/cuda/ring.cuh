// The update of a rule with a ring (core/update.h), in the place of elements.cuh's.
#pragma once

#include "cuda/elements.cuh"

namespace lrt::cuda {

// The newest gradients go into their slot, and are read again from the cache, as the thread's own.
template <class Access, bool kPlain, class Rule, class Param, class State, int kCount>
  requires kHasRing<Rule>
LRT_DEVICE void update_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, uint32_t keeps,
                                Elements<Rule, Param, State, kCount>& elements) {
  const auto& scalars = chunk.shared.scalars;
  const Vector<Param, kCount> grads = seen_grads<kPlain>(chunk, begin, elements.grads);
  Vector<State, kCount> newest;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    newest.value[e] = from_real<State>(
        decayed_grad<Decay::kSelect>(scalars, to_real(elements.params.value[e]), to_real(grads.value[e])));
  }
  const auto place = [&](int64_t slot) { return slot * chunk.row.numel + begin; };
  const auto load = [&](int64_t slot) {
    return Access::template load<State, kCount>(chunk.row.states[0], place(slot));
  };
  Access::store(chunk.row.states[0], place(chunk.rule.slot), newest);
  const Vector<State, kCount> first = load(0);
  Real<Param> mean[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) mean[e] = to_real(first.value[e]);
#pragma unroll 4
  for (int64_t slot = 1; slot < chunk.rule.filled; ++slot) {
    const Vector<State, kCount> gradients = load(slot);
    const Real<Param> weight = Rule::weight(slot);
#pragma unroll
    for (int e = 0; e < kCount; ++e) mean[e] = Rule::include(mean[e], to_real(gradients.value[e]), weight);
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const Real<Param> updated = moved_param<Decay::kSelect>(scalars, to_real(elements.params.value[e]), mean[e]);
    if (keeps >> e & 1) elements.params.value[e] = from_real<Param>(updated);
  }
}

}  // namespace lrt::cuda
