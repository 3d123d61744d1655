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
    grads = Access::OfGradients::template load<Param, kCount>(row.grad, begin);
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

// The elements that a thread steps one after the other, from `begin` on.
template <class Access, class Rule, class Param, class State, int kCount>
struct LoadedAhead {
  Elements<Rule, Param, State, kCount> next;

  __device__ __forceinline__ LoadedAhead(const TableRow& row, int64_t begin) {
    if constexpr (kLoadsAhead<State>) next.template load<Access>(row, begin);
  }
  // Those at `begin`; those at `following` are asked for, if there are more.
  __device__ __forceinline__ Elements<Rule, Param, State, kCount> take(const TableRow& row, int64_t begin,
                                                                       int64_t following, bool more) {
    if constexpr (!kLoadsAhead<State>) next.template load<Access>(row, begin);
    const Elements<Rule, Param, State, kCount> elements = next;
    if (kLoadsAhead<State> && more) next.template load<Access>(row, following);
    return elements;
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

// Each lane's sum of slopes, where one is asked for.
template <bool kSloped, class Param, int kCount>
struct Slopes {
  Real<Param> lanes[kSloped ? kCount : 1] = {};
  template <class Elements>
  __device__ __forceinline__ void advance(const Vector<Param, kCount>& old_params, const Elements& elements) {
    if constexpr (kSloped) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        lanes[e] = lanes[e] + slope_term(to_real(elements.grads.value[e]), to_real(old_params.value[e]),
                                         to_real(elements.params.value[e]));
      }
    }
  }
  __device__ __forceinline__ Real<Param> unit() const { return slope_unit<kSloped ? kCount : 1>(lanes); }
};

// The same, and stored.
template <class Access, bool kPlain, class Rule, class Param, class State, int kCount, class Slopes>
LRT_DEVICE void step_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, uint32_t keeps,
                              Elements<Rule, Param, State, kCount>& elements, Slopes& slopes) {
  const Vector<Param, kCount> old_params = elements.params;
  update_elements<Access, kPlain>(chunk, begin, keeps, elements);
  elements.template store<Access>(chunk.row, begin);
  slopes.advance(old_params, elements);
}

}  // namespace lrt::cuda
