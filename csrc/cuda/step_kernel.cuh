// The CUDA step: load -> update -> keep -> store over a list of tensors. Knows no optimizer: a template over
// (rule, storage types) that rule.cu instantiates.
//
// Two launches (and two more where gradients are centralized): prepare_kernel advances the step counts and rounds the
// constants, one thread a tensor; step_kernel steps one chunk a block. Every scalar that may live on the device is read
// there, so that a captured graph freezes nothing, and nothing but these two kernels knows whether found_inf is set.
#pragma once

#include "cuda/slices.cuh"
#include "cuda/slope.cuh"

namespace lrt::cuda {

constexpr int kThreads = 128;
constexpr int kAccess = 16;  // bytes of one access, and of a unit of lanes (core/slope.h)

// What all tensors of a call share, and what each has of its own, in the compute type.
template <class Real>
struct Shared {
  UpdateScalars<Real> scalars;
  uint32_t limit;  // an element is kept iff its 16 bits, in the upper half of a word, are below
  bool draws, skip;
};
template <class Rule>
struct Own {
  Rule rule;
  uint32_t step;
  bool counted;  // the count of steps was one; else the tensor is left alone
};
struct alignas(16) Prepared {
  char bytes[kPreparedBytes];
};

template <class Rule, class Hyper, class Real>
__global__ void prepare_kernel(Step call, Hyper hyper) {
  static_assert(sizeof(Shared<Real>) <= kPreparedBytes && sizeof(Own<Rule>) <= kPreparedBytes);
  Prepared* prepared = static_cast<Prepared*>(call.prepared);
  const bool skip = read(call.found_inf) != 0;
  const int64_t tensor = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (tensor == 0) {
    const uint32_t threshold = keep_threshold(read(call.keep_prob));
    const StepScalars scalars = step_scalars(read(call.lr), call.weight_decay, call.decoupled_weight_decay,
                                             read(call.grad_weight), read(call.grad_scale), call.maximize);
    const bool draws = threshold != 0 && threshold != kKeepAll;
    // Without draws every word is 0, and 0 < 1 keeps all.
    const Shared<Real> shared = {UpdateScalars<Real>(scalars),
                                 draws            ? threshold << 16
                                 : threshold == 0 ? 0u
                                                  : 1u,
                                 draws, skip};
    *reinterpret_cast<Shared<Real>*>(prepared) = shared;
  }
  if (tensor >= call.tensors || skip) return;
  double* step = reinterpret_cast<double*>(call.rows[tensor].step);
  const bool counted = is_step_count(*step);
  const double next = counted ? *step + 1 : 1;
  if (counted) *step = next;
  double scalar = 0;
  if constexpr (kHasScalar<Hyper>) {
    double* const own = reinterpret_cast<double*>(call.rows[tensor].scalar);
    scalar = hyper.advance(next, *own);
    if (counted) *own = scalar;
  }
  *reinterpret_cast<Own<Rule>*>(prepared + 1 + tensor) = {rule_at<Rule>(hyper, next, scalar),
                                                          static_cast<uint32_t>(static_cast<uint64_t>(next)), counted};
}

// kCount elements in as few accesses as their size allows.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < kAccess ? sizeof(T) * kCount : kAccess) Vector {
  T value[kCount];
};

template <class T, int kCount>
LRT_DEVICE Vector<T, kCount>& vector_at(int64_t base, int64_t element) {
  T* const address = reinterpret_cast<T*>(base) + element;
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));  // an integer does not say so, and sm_100 would use generic accesses
#endif
  return *reinterpret_cast<Vector<T, kCount>*>(address);
}

// What the threads of a block share.
template <class Rule, class Real>
struct Chunk {
  const Rule& rule;
  const Shared<Real>& shared;
  const TableRow& row;
  KeepStream key;
  int64_t end;  // of its elements
  SliceMeans<Real> means;
};

// The gradients of kCount elements that the rule sees. kCentralize: there may be means, which is looked up.
template <class Param, int kCount, bool kCentralize, class Rule>
LRT_DEVICE Vector<Param, kCount> seen_grads(const Chunk<Rule, Real<Param>>& chunk, int64_t begin,
                                            Vector<Param, kCount> grads) {
  if constexpr (kCentralize) {
    if (chunk.means.first) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) grads.value[e] = centralized(grads.value[e], chunk.means.of(begin + e));
    }
  }
  return grads;
}

// kCount consecutive elements. `bits` holds their draws in the upper half; what is below does not reach the limit. Each
// lane's sum of slopes advances.
template <class Param, class State, int kCount, bool kCentralize, class Rule>
  requires(!kHasRing<Rule>)
LRT_DEVICE void step_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, const uint32_t (&bits)[kCount],
                              Real<Param> (&slopes)[kCount]) {
  Vector<Param, kCount>& stored = vector_at<Param, kCount>(chunk.row.param, begin);
  Vector<Param, kCount> params = stored;
  const Vector<Param, kCount> stored_grads = vector_at<Param, kCount>(chunk.row.grad, begin);
  const Vector<Param, kCount> grads = seen_grads<Param, kCount, kCentralize>(chunk, begin, stored_grads);
  Vector<State, kCount> states[kMaxStates];
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) states[k] = vector_at<State, kCount>(chunk.row.states[k], begin);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    Real<Param> state[kMaxStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k] = to_real(states[k].value[e]);
    const Real<Param> param = to_real(params.value[e]);
    const Real<Param> updated =
        update<Decay::kSelect>(chunk.rule, chunk.shared.scalars, param, to_real(grads.value[e]), state);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) states[k].value[e] = from_real<State>(state[k]);
    if (bits[e] < chunk.shared.limit) params.value[e] = from_real<Param>(updated);
    slopes[e] = slopes[e] + slope_term(to_real(stored_grads.value[e]), param, to_real(params.value[e]));
  }
  stored = params;
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) vector_at<State, kCount>(chunk.row.states[k], begin) = states[k];
}

// The same for a rule with a ring.
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
    return vector_at<State, kCount>(chunk.row.states[0], number * chunk.row.count + begin);
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
    if (bits[e] < chunk.shared.limit) params.value[e] = from_real<Param>(updated);
    slopes[e] = slopes[e] + slope_term(to_real(stored_grads.value[e]), param, to_real(params.value[e]));
  }
  stored = params;
}

// kCount neighbouring lanes of a tile, whose calls serve all eight rows; returns their sum of slopes. A single lane may
// end with the chunk, several are whole.
template <class Param, class State, int kCount, bool kCentralize, class Rule>
LRT_DEVICE Real<Param> step_lanes(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int lane) {
  PhiloxBlock<uint32_t> draws[kCount] = {};
  if (chunk.shared.draws) {
    for (int e = 0; e < kCount; ++e) draws[e] = draw(chunk.key, tile * kLanes + lane + e, Stream::kElement);
  }
  Real<Param> slopes[kCount] = {};
#pragma unroll 1
  for (int word = 0; word < 4; ++word) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t bits[kCount];
      for (int e = 0; e < kCount; ++e) bits[e] = half ? draws[e].word[0] : draws[e].word[0] << 16;
      const int64_t element = tile * kTile + (2 * word + half) * kLanes + lane;
      if (kCount > 1 || element < chunk.end) {
        step_elements<Param, State, kCount, kCentralize>(chunk, element, bits, slopes);
      }
    }
    for (int e = 0; e < kCount; ++e) {  // the next word, in the place of this one: registers have no index
      draws[e] = {{draws[e].word[1], draws[e].word[2], draws[e].word[3], 0}};
    }
  }
  return slope_unit<kCount>(slopes);
}

// Blocks per multiprocessor that the compiler shall make room for. Left alone it aims at more of them for some kernels,
// and spills a few registers for it.
template <class Rule, class Param>
constexpr int kMinBlocks = sizeof(Param) == 4                     ? 4
                           : kHasRing<Rule> && sizeof(Param) == 2 ? 2
                                                                  : 3;

template <class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<Rule, Param>)) step_kernel(Step call) {
  constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>;
  const Prepared* prepared = static_cast<const Prepared*>(call.prepared);
  const auto shared = *reinterpret_cast<const Shared<Real<Param>>*>(prepared);
  if (shared.skip) return;
  const int32_t tensor = call.chunk_tensors[blockIdx.x];
  const auto own = *reinterpret_cast<const Own<Rule>*>(prepared + 1 + tensor);
  const TableRow row = call.rows[tensor];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.count ? begin + kChunk : row.count;
  const int64_t stepped_end = own.counted ? end : begin;  // nothing is, without a count
  const Chunk<Rule, Real<Param>> chunk = {own.rule,    shared,
                                          row,         {call.seed, own.step, static_cast<uint32_t>(row.param_index)},
                                          stepped_end, SliceMeans<Real<Param>>(slice_means<Param>(call), row, begin)};
  int64_t addresses = row.param | row.grad;
  for (int k = 0; k < Rule::kStates; ++k) addresses |= row.states[k];
  if constexpr (kHasRing<Rule>) addresses |= row.count * static_cast<int64_t>(sizeof(State));  // from slot to slot
  const int64_t last_tile =
      addresses % kAccess == 0 ? stepped_end / kTile : begin / kTile;  // of those in wide accesses
  const int unit = threadIdx.x % kUnits;
  const auto store_slope = [&](int64_t tile, Real<Param> slope) {
    const int64_t of_list = static_cast<int64_t>(blockIdx.x) * kChunkTiles + tile % kChunkTiles;
    if (call.slope) slope_units<Param>(call)[of_list * kUnits + unit] = slope;
  };
  int64_t tile = begin / kTile + threadIdx.x / kUnits;
  const auto step_tiles = [&]<bool kCentralize>() {
    for (; tile < last_tile; tile += kThreads / kUnits) {
      store_slope(tile, step_lanes<Param, State, kUnit, kCentralize>(chunk, tile, unit * kUnit));
    }
  };
  if (chunk.means.first) {
    step_tiles.template operator()<true>();
  } else {
    step_tiles.template operator()<false>();
  }
  for (; tile * kTile < end; tile += kThreads / kUnits) {
    Real<Param> slope = 0;
#pragma unroll 1
    for (int lane = unit * kUnit; lane < (unit + 1) * kUnit; ++lane) {
      slope = slope + step_lanes<Param, State, 1, true>(chunk, tile, lane);
    }
    store_slope(tile, slope);
  }
}

template <class Variant, class Param, class State>
const char* launch_pair(const Step& call, const typename Variant::Hyper& hyper) {
  using Rule = typename Variant::template Rule<Real<Param>>;
  const int64_t blocks = (call.tensors + kThreads - 1) / kThreads;
  const char* error =
      LAUNCH((prepare_kernel<Rule, typename Variant::Hyper, Real<Param>>), blocks, kThreads, call.stream, call, hyper);
  if (error || call.chunks == 0) return error;
  if (call.slices != 0) error = launch_means<Param>(call);
  if (error) return error;
  error = LAUNCH((step_kernel<Rule, Param, State>), call.chunks, kThreads, call.stream, call);
  return error || !call.slope ? error : launch_slope<Param>(call);
}

// All launches of one rule's variant for the call's pair of storage types.
template <class Variant>
const char* launch_variant(const Step& call, const typename Variant::Hyper& hyper) {
  if (call.tensors == 0) return nullptr;
  return with_pair<const char*>(
      call.param, call.state, "no kernel for the dtype of the parameters with that of their states",
      [&]<class Param, class State>() { return launch_pair<Variant, Param, State>(call, hyper); });
}

}  // namespace lrt::cuda
