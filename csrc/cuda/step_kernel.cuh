// The CUDA step: load -> update -> keep -> store over a list of tensors. Knows no optimizer: a template over
// (rule, storage types) that rule_*.cu instantiate.
//
// Two launches: prepare_kernel advances the step counts and rounds the constants, one thread a tensor; step_kernel
// steps one chunk a block. Every scalar that may live on the device is read there, so that a captured graph freezes
// nothing, and nothing but these two kernels knows whether found_inf is set.
#pragma once

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
    const Shared<Real> shared = {UpdateScalars<Real>(scalars), draws ? threshold << 16 : threshold == 0 ? 0u : 1u,
                                 draws, skip};
    *reinterpret_cast<Shared<Real>*>(prepared) = shared;
  }
  if (tensor >= call.tensors || skip) return;
  double* step = reinterpret_cast<double*>(call.rows[tensor].step);
  *step = *step + 1;
  *reinterpret_cast<Own<Rule>*>(prepared + 1 + tensor) = {Rule(hyper, *step),
                                                          static_cast<uint32_t>(static_cast<uint64_t>(*step))};
}

// kCount elements in as few accesses as their size allows.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < kAccess ? sizeof(T) * kCount : kAccess) Vector {
  T value[kCount];
};

template <class T>
LRT_DEVICE T* global(int64_t base, int64_t element) {
  T* const address = reinterpret_cast<T*>(base) + element;
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));  // an integer does not say so, and sm_100 would use generic accesses
#endif
  return address;
}

// The first `count` of kCount elements, one by one, or with kWide all of them at once.
template <bool kWide, class T, int kCount>
LRT_DEVICE Vector<T, kCount> load(int64_t base, int64_t element, int count) {
  T* const from = global<T>(base, element);
  if constexpr (kWide) return *reinterpret_cast<Vector<T, kCount>*>(from);
  Vector<T, kCount> vector = {};
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (e < count) vector.value[e] = from[e];
  }
  return vector;
}
template <bool kWide, class T, int kCount>
LRT_DEVICE void store(int64_t base, int64_t element, int count, const Vector<T, kCount>& vector) {
  T* const to = global<T>(base, element);
  if constexpr (kWide) {
    *reinterpret_cast<Vector<T, kCount>*>(to) = vector;
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (e < count) to[e] = vector.value[e];
    }
  }
}

// What the threads of a block share.
template <class Rule, class Real>
struct Chunk {
  const Rule& rule;
  const Shared<Real>& shared;
  const TableRow& row;
  KeepStream key;
  int64_t end;   // of its elements
  Real* slopes;  // where the units of its first tile go, or null
};

// kCount consecutive elements, or the first of them before the chunk's end. `bits` holds their draws in the upper half;
// what is below does not reach the limit. Each lane's sum of slopes advances.
template <bool kWide, class Param, class State, int kCount, class Rule>
LRT_DEVICE void step_elements(const Chunk<Rule, Real<Param>>& chunk, int64_t begin, const uint32_t (&bits)[kCount],
                              Real<Param> (&slopes)[kCount]) {
  const int64_t left = chunk.end - begin;
  const int count = left < kCount ? static_cast<int>(left) : kCount;
  Vector<Param, kCount> params = load<kWide, Param, kCount>(chunk.row.param, begin, count);
  const Vector<Param, kCount> grads = load<kWide, Param, kCount>(chunk.row.grad, begin, count);
  Vector<State, kCount> states[kMaxStates];
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) states[k] = load<kWide, State, kCount>(chunk.row.states[k], begin, count);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    Real<Param> state[kMaxStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) state[k] = to_real(states[k].value[e]);
    const Real<Param> param = to_real(params.value[e]), grad = to_real(grads.value[e]);
    const Real<Param> updated = update<Decay::kSelect>(chunk.rule, chunk.shared.scalars, param, grad, state);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) states[k].value[e] = from_real<State>(state[k]);
    if (bits[e] < chunk.shared.limit) params.value[e] = from_real<Param>(updated);
    if (kWide || e < count) slopes[e] = slopes[e] + slope_term(grad, param, to_real(params.value[e]));
  }
  store<kWide>(chunk.row.param, begin, count, params);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) store<kWide>(chunk.row.states[k], begin, count, states[k]);
}

// One thread's part of a tile: the kCount neighbouring lanes of a unit, whose calls serve all eight rows.
template <bool kWide, class Param, class State, class Rule>
LRT_DEVICE void step_lanes(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int unit) {
  constexpr int kCount = kSlopeLanes<Param>;
  const int lane = unit * kCount;
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
      if (kWide || element < chunk.end) step_elements<kWide, Param, State, kCount>(chunk, element, bits, slopes);
    }
    for (int e = 0; e < kCount; ++e) {  // the next word, in the place of this one: registers have no index
      draws[e] = {{draws[e].word[1], draws[e].word[2], draws[e].word[3], 0}};
    }
  }
  if (chunk.slopes) chunk.slopes[tile % kChunkTiles * kTileUnits<Param> + unit] = slope_unit<kCount>(slopes);
}

// Blocks per multiprocessor that the compiler shall make room for (0: its own choice, which spills a few registers of
// sm_100's kernels of 16-bit states, and of three states of doubles).
template <class State, int kStates>
constexpr int kMinBlocks = sizeof(State) == 2 || (sizeof(State) == 8 && kStates == 3) ? 4 : 0;

template <class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<State, Rule::kStates>)) step_kernel(Step call) {
  constexpr int kTilesAtOnce = kThreads / kTileUnits<Param>;
  const Prepared* prepared = static_cast<const Prepared*>(call.prepared);
  const auto shared = *reinterpret_cast<const Shared<Real<Param>>*>(prepared);
  if (shared.skip) return;
  const int32_t tensor = call.chunk_tensors[blockIdx.x];
  const auto own = *reinterpret_cast<const Own<Rule>*>(prepared + 1 + tensor);
  const TableRow row = call.rows[tensor];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.count ? begin + kChunk : row.count;
  Real<Param>* const slopes =
      call.slope ? slope_units<Param>(call) + static_cast<int64_t>(blockIdx.x) * kChunkTiles * kTileUnits<Param> : nullptr;
  const Chunk<Rule, Real<Param>> chunk = {
      own.rule, shared, row, {call.seed, own.step, static_cast<uint32_t>(row.param_index)}, end, slopes};
  int64_t addresses = row.param | row.grad;
  for (int k = 0; k < Rule::kStates; ++k) addresses |= row.states[k];
  const int64_t last_tile = addresses % kAccess == 0 ? end / kTile : begin / kTile;  // of those in wide accesses
  const int unit = threadIdx.x % kTileUnits<Param>;
  int64_t tile = begin / kTile + threadIdx.x / kTileUnits<Param>;
  for (; tile < last_tile; tile += kTilesAtOnce) step_lanes<true, Param, State>(chunk, tile, unit);
  for (; tile * kTile < end; tile += kTilesAtOnce) step_lanes<false, Param, State>(chunk, tile, unit);
}

template <template <class> class Rule, class Hyper, class Param, class State>
const char* launch_pair(const Step& call, const Hyper& hyper) {
  using R = Rule<Real<Param>>;
  const int64_t blocks = (call.tensors + kThreads - 1) / kThreads;
  const char* error = LAUNCH((prepare_kernel<R, Hyper, Real<Param>>), blocks, kThreads, call.stream, call, hyper);
  if (error || call.chunks == 0) return error;
  error = LAUNCH((step_kernel<R, Param, State>), call.chunks, kThreads, call.stream, call);
  return error || !call.slope ? error : launch_slope<Param>(call);
}

// Both launches of one rule for the call's pair of storage types.
template <template <class> class Rule, class Hyper>
const char* launch(const Step& call, const Hyper& hyper) {
  if (call.tensors == 0) return nullptr;
  if (call.param == Dtype::kFloat && call.state == Dtype::kFloat) {
    return launch_pair<Rule, Hyper, float, float>(call, hyper);
  }
  if (call.param == Dtype::kDouble && call.state == Dtype::kDouble) {
    return launch_pair<Rule, Hyper, double, double>(call, hyper);
  }
  if (call.param == Dtype::kBFloat16 && call.state == Dtype::kFloat) {
    return launch_pair<Rule, Hyper, BFloat16, float>(call, hyper);
  }
  if (call.param == Dtype::kBFloat16 && call.state == Dtype::kBFloat16) {
    return launch_pair<Rule, Hyper, BFloat16, BFloat16>(call, hyper);
  }
  if (call.param == Dtype::kHalf && call.state == Dtype::kFloat) {
    return launch_pair<Rule, Hyper, Half, float>(call, hyper);
  }
  if (call.param == Dtype::kHalf && call.state == Dtype::kHalf) {
    return launch_pair<Rule, Hyper, Half, Half>(call, hyper);
  }
  return "no kernel for the dtype of the parameters with that of their states";
}

}  // namespace lrt::cuda
