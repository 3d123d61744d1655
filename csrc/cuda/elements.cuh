// kCount neighbouring elements of a parameter in a thread's registers: load -> update -> keep -> store.
#pragma once

#include "cuda/chunk.cuh"

namespace lrt::cuda {

template <class Rule, class Param, class State, int kCount>
struct Elements {
  static constexpr int kStates = kHasRing<Rule> ? 0 : Rule::kStates;  // a ring's slots stay in memory (ring.cuh)
  Vector<Param, kCount> params, grads;
  Vector<State, kCount> states[kMaxStates];

  template <class Access>
  __device__ __forceinline__ void load(const TableRow& row, int64_t begin) {
    params = Access::template load<Param, kCount>(row.param, begin);
    grads = Access::template load<Param, kCount>(row.grad, begin);
#pragma unroll
    for (int k = 0; k < kStates; ++k) states[k] = Access::template load<State, kCount>(row.states[k], begin);
  }
  template <class Access>
  __device__ __forceinline__ void store(const TableRow& row, int64_t begin) const {
    Access::store(row.param, begin, params);
#pragma unroll
    for (int k = 0; k < kStates; ++k) Access::store(row.states[k], begin, states[k]);
  }
};

// What an update makes of the elements at `begin`, those kept whose bits are set.
template <class Access, bool kPlain, class Rule, class Param, class State, int kCount>
  requires(!kHasRing<Rule>)
LRT_DEVICE void update_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, uint32_t keeps,
                                Elements<Rule, Param, State, kCount>& elements) {
  const Vector<Param, kCount> grads = seen_grads<kPlain>(chunk, begin, elements.grads);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    Real<Param> state[kMaxStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k] = to_real(elements.states[k].value[e]);
    const Real<Param> param = to_real(elements.params.value[e]);
    const Real<Param> updated =
        update<Decay::kSelect>(chunk.rule, chunk.shared.scalars, param, to_real(grads.value[e]), state);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) elements.states[k].value[e] = from_real<State>(state[k]);
    if (keeps >> e & 1) elements.params.value[e] = from_real<Param>(updated);
  }
}

// The same, and stored; each lane's sum of slopes advances where one is asked for.
template <class Access, bool kPlain, class Rule, class Param, class State, int kCount>
LRT_DEVICE void step_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, uint32_t keeps,
                              Elements<Rule, Param, State, kCount>& elements, Real<Param> (&slopes)[kCount]) {
  const Vector<Param, kCount> old_params = elements.params;
  update_elements<Access, kPlain>(chunk, begin, keeps, elements);
  elements.template store<Access>(chunk.row, begin);
  if constexpr (!kPlain) {
    if (chunk.sloped) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        slopes[e] = slopes[e] + slope_term(to_real(elements.grads.value[e]), to_real(old_params.value[e]),
                                           to_real(elements.params.value[e]));
      }
    }
  }
}

}  // namespace lrt::cuda
