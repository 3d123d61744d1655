// The CUDA step: load -> update -> keep -> store over a list of tensors. Knows no optimizer: a template over
// (rule, storage types) that rule.cu instantiates.
//
// Two launches (and two more where gradients are centralized): prepare_kernel advances the step counts and rounds the
// constants, one thread a tensor; step_kernel steps one chunk a block. Every scalar that may live on the device is read
// there, so that a captured graph freezes nothing, and nothing but these two kernels knows whether found_inf is set.
#pragma once

#include "cuda/prepare.cuh"
#include "cuda/ring.cuh"
#include "cuda/slope.cuh"

namespace lrt::cuda {

// kCount consecutive elements. `bits` holds their draws in the upper half; what is below does not reach the threshold.
// Each lane's sum of slopes advances.
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
    if (bits[e] < chunk.shared.word_threshold) params.value[e] = from_real<Param>(updated);
    slopes[e] = slopes[e] + slope_term(to_real(stored_grads.value[e]), param, to_real(params.value[e]));
  }
  stored = params;
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) vector_at<State, kCount>(chunk.row.states[k], begin) = states[k];
}

// kCount neighbouring lanes of a tile, whose calls serve all eight rows; returns their sum of slopes. A single lane may
// end with the chunk, several are whole.
template <class Param, class State, int kCount, bool kCentralize, class Rule>
LRT_DEVICE Real<Param> step_lanes(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int lane) {
  PhiloxBlock<uint32_t> draws[kCount] = {};
  if (chunk.shared.masked) {
    for (int e = 0; e < kCount; ++e) draws[e] = draw(chunk.stream, tile * kLanes + lane + e, Stream::kElement);
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

// The same of a shard, whose elements' calls serve no others: one row at a time.
template <class Param, class State, int kCount, class Rule>
LRT_DEVICE Real<Param> step_shard(const Chunk<Rule, Real<Param>>& chunk, const ChunkMap& map, int64_t tile, int lane) {
  Real<Param> slopes[kCount] = {};
#pragma unroll 1
  for (int row = 0; row < kTile / kLanes; ++row) {
    const int64_t element = tile * kTile + row * kLanes + lane;
    uint32_t bits[kCount] = {};
    if (chunk.shared.masked) {
      for (int e = 0; e < kCount; ++e) bits[e] = keep_bits(chunk.stream, map.element(element + e)) << 16;
    }
    if (kCount > 1 || element < chunk.end) step_elements<Param, State, kCount, true>(chunk, element, bits, slopes);
  }
  return slope_unit<kCount>(slopes);
}

// Blocks per multiprocessor that the compiler shall make room for. Left alone it aims at more of them for some kernels,
// and spills a few registers for it.
template <class Rule, class Param>
constexpr int kMinBlocks = sizeof(Param) == 4                     ? 4
                           : kHasRing<Rule> && sizeof(Param) == 2 ? 2
                                                                  : 3;

// The chunk of a block. kShards: of a list with shards among its tensors.
template <bool kShards, class Rule, class Param, class State>
LRT_DEVICE void step_chunk(const Step& call) {
  constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>;
  const Prepared* prepared = static_cast<const Prepared*>(call.prepared);
  const auto shared = *reinterpret_cast<const Shared<Real<Param>>*>(prepared);
  if (shared.skip) return;
  const int32_t tensor = call.chunk_tensors[blockIdx.x];
  const auto own = *reinterpret_cast<const Own<Rule>*>(prepared + 1 + tensor);
  const TableRow row = call.rows[tensor];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const int64_t stepped_end = own.counted ? end : begin;  // nothing is, without a count
  const Chunk<Rule, Real<Param>> chunk = {
      own.rule,    shared,
      row,         {call.arguments.seed, own.step, static_cast<uint32_t>(row.param_index)},
      stepped_end, SliceMeans<Real<Param>>(slice_means<Param>(call), row, begin)};
  int64_t addresses = row.param | row.grad;
  for (int k = 0; k < Rule::kStates; ++k) addresses |= row.states[k];
  if constexpr (kHasRing<Rule>) addresses |= row.numel * static_cast<int64_t>(sizeof(State));  // from slot to slot
  const int64_t last_tile =
      addresses % kAccess == 0 ? stepped_end / kTile : begin / kTile;  // of those in wide accesses
  const int unit = threadIdx.x % kUnits;
  const auto store_slope = [&](int64_t tile, Real<Param> slope) {
    const int64_t of_list = static_cast<int64_t>(blockIdx.x) * kChunkTiles + tile % kChunkTiles;
    if (call.slope) slope_units<Param>(call)[of_list * kUnits + unit] = slope;
  };
  int64_t tile = begin / kTile + threadIdx.x / kUnits;
  const auto in_wide_accesses = [&](const auto& lanes) {
    for (; tile < last_tile; tile += kThreads / kUnits) store_slope(tile, lanes(tile, unit * kUnit));
  };
  const auto lane_by_lane = [&](const auto& lanes) {
    for (; tile * kTile < end; tile += kThreads / kUnits) {
      Real<Param> slope = 0;
#pragma unroll 1
      for (int lane = unit * kUnit; lane < (unit + 1) * kUnit; ++lane) slope = slope + lanes(tile, lane);
      store_slope(tile, slope);
    }
  };
  if constexpr (kShards) {
    const ChunkMap map(row.map, begin);
    in_wide_accesses([&](int64_t t, int lane) { return step_shard<Param, State, kUnit>(chunk, map, t, lane); });
    lane_by_lane([&](int64_t t, int lane) { return step_shard<Param, State, 1>(chunk, map, t, lane); });
  } else {
    if (chunk.means.first) {
      in_wide_accesses([&](int64_t t, int lane) { return step_lanes<Param, State, kUnit, true>(chunk, t, lane); });
    } else {
      in_wide_accesses([&](int64_t t, int lane) { return step_lanes<Param, State, kUnit, false>(chunk, t, lane); });
    }
    lane_by_lane([&](int64_t t, int lane) { return step_lanes<Param, State, 1, true>(chunk, t, lane); });
  }
}

template <class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<Rule, Param>)) step_kernel(Step call) {
  step_chunk<false, Rule, Param, State>(call);
}

// A kernel of its own: what a shard's draws need would cost the other registers.
template <class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<Rule, Param>)) shard_kernel(Step call) {
  step_chunk<true, Rule, Param, State>(call);
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
  error = call.shards ? LAUNCH((shard_kernel<Rule, Param, State>), call.chunks, kThreads, call.stream, call)
                      : LAUNCH((step_kernel<Rule, Param, State>), call.chunks, kThreads, call.stream, call);
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
