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

// kCount neighbouring lanes of a whole tile, all eight rows, the loads of a row before the arithmetic of the one
// before; returns their sum of slopes. The rows of two passes in one save copies of registers, but are twice the code.
template <class Access, bool kPlain, class Rule, class Param, class State, int kCount, class Draw>
LRT_DEVICE Real<Param> step_lanes(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int lane, const Draw& draw) {
  constexpr int kPasses = kPlain ? kRows / 2 : kRows, kPassRows = kRows / kPasses;
  int64_t element = tile * kTile + lane;
  Elements<Rule, Param, State, kCount> next;
  next.template load<Access>(chunk.row, element);
  Keeps<kCount> keeps = draw.template operator()<kCount>(tile, lane);
  Real<Param> slopes[kCount] = {};
#pragma unroll 1
  for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
    for (int row = 0; row < kPassRows; ++row) {
      Elements<Rule, Param, State, kCount> elements = next;
      if (row + 1 < kPassRows || pass + 1 < kPasses) next.template load<Access>(chunk.row, element + kLanes);
      step_elements<Access, kPlain>(chunk, element, static_cast<uint32_t>(keeps), elements, slopes);
      element += kLanes;
      keeps >>= kCount;
    }
  }
  return slope_unit<kCount>(slopes);
}

// One lane of a tile, which may end with the chunk: all eight rows, all loads first.
template <class Rule, class Param, class State, class Draw>
LRT_DEVICE Real<Param> step_lane(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int lane, const Draw& draw) {
  const int64_t begin = tile * kTile + lane;
  if (begin >= chunk.end) return 0;
  Elements<Rule, Param, State, 1> rows[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (begin + row * kLanes < chunk.end) rows[row].template load<AlignedAccess>(chunk.row, begin + row * kLanes);
  }
  const Keeps<1> keeps = draw.template operator()<1>(tile, lane);
  Real<Param> slopes[1] = {};
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int64_t element = begin + row * kLanes;
    if (element < chunk.end) step_elements<AlignedAccess, false>(chunk, element, keeps >> row, rows[row], slopes);
  }
  return slopes[0];
}

// Blocks per multiprocessor that the compiler shall make room for: 512 threads of up to 128 registers, and fewer where
// that spills. Left alone it aims at more for some kernels, and spills a few registers for it.
template <bool kShards, class Rule, class Param>
constexpr int kMinBlocks = sizeof(Param) == 4   ? 2
                           : sizeof(Param) == 2 ? 4 - (kShards && Rule::kStates == kMaxStates)
                                                : 3 - (Rule::kStates == kMaxStates);

// One block's chunk.
template <class Rule, class Param, class State>
struct BlockStep {
  static constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>;
  const Step& call;
  const Chunk<Rule, Real<Param>>& chunk;
  int64_t begin, end;

  // The place is found anew each time: a pointer that waits for this would cost the loops registers.
  __device__ __forceinline__ void store_slope(int64_t tile, int unit, Real<Param> slope) const {
    if (!call.slope) return;
    const int64_t of_list = static_cast<int64_t>(blockIdx.x) * kChunkTiles + tile % kChunkTiles;
    slope_units<Param>(call)[of_list * kUnits + unit] = slope;
  }

  // Whole tiles, from the chunk's first to `last`, a thread a unit of lanes.
  template <class Access, bool kPlain, class Draw>
  __device__ __forceinline__ void step_tiles(int64_t last, const Draw& draw) const {
    const int unit = static_cast<int>(threadIdx.x) % kUnits;
    int64_t tile = begin / kTile + threadIdx.x / kUnits;
    for (; tile < last; tile += kThreads<Param> / kUnits) {
      const auto slope = step_lanes<Access, kPlain, Rule, Param, State, kUnit>(chunk, tile, unit * kUnit, draw);
      if constexpr (!kPlain) store_slope(tile, unit, slope);
    }
  }

  // The tiles from `first` on, a thread a lane; or a unit of lanes, where slopes are summed. The last threads begin:
  // they have least to do before.
  template <class Draw>
  __device__ __forceinline__ void step_rest(int64_t first, const Draw& draw) const {
    const int thread = kThreads<Param> - 1 - static_cast<int>(threadIdx.x);
    const int lanes = chunk.sloped ? kUnit : 1, owners = chunk.sloped ? kUnits : static_cast<int>(kLanes);
    const int64_t tile = first + (chunk.sloped ? thread / kUnits : thread / static_cast<int>(kLanes));
    const int owner = thread & (owners - 1);
    if (tile * kTile >= end) return;
    Real<Param> slope = 0;
#pragma unroll 1
    for (int lane = owner * lanes; lane < (owner + 1) * lanes; ++lane) {
      slope = slope + step_lane<Rule, Param, State>(chunk, tile, lane, draw);
    }
    store_slope(tile, owner, slope);
  }

  // Few tiles are stepped a lane a thread: that takes the time of one access to memory, a whole tile that of eight.
  template <class Draw>
  __device__ __forceinline__ void run(bool aligned, bool plain, const Draw& draw) const {
    const bool few = !chunk.sloped && end - begin <= kThreads<Param> * kRows;
    const int64_t last = few ? begin / kTile : end / kTile;
    step_rest(last, draw);  // first: what only it needs is out of the registers then
    if (aligned && plain) {
      step_tiles<AlignedAccess, true>(last, draw);
    } else {
      step_tiles<AnyAccess, false>(last, draw);
    }
  }
};

// The operands' addresses, of which the lowest bits say how they are aligned.
template <class Rule, class State>
LRT_DEVICE int64_t addresses_of(const TableRow& row) {
  int64_t addresses = row.param | row.grad;
  for (int k = 0; k < Rule::kStates; ++k) addresses |= row.states[k];
  if constexpr (kHasRing<Rule>) addresses |= row.numel * static_cast<int64_t>(sizeof(State));  // from slot to slot
  return addresses;
}

// The slopes of a chunk that is left alone.
template <class Param>
LRT_DEVICE void clear_slopes(const Step& call) {
  constexpr int kUnits = static_cast<int>(kChunkTiles) * kTileUnits<Param>;
  if (!call.slope) return;
  Real<Param>* const slopes = slope_units<Param>(call) + static_cast<int64_t>(blockIdx.x) * kUnits;
  for (int unit = static_cast<int>(threadIdx.x); unit < kUnits; unit += kThreads<Param>) slopes[unit] = 0;
}

// The chunk of a block. kShards: of a list with shards among its tensors.
template <bool kShards, class Rule, class Param, class State>
LRT_DEVICE void step_chunk(const Step& call) {
  const Prepared* prepared = static_cast<const Prepared*>(call.prepared);
  const int32_t tensor = call.chunk_tensors[blockIdx.x];
  const auto shared = *reinterpret_cast<const Shared<Real<Param>>*>(prepared);
  const auto own = *reinterpret_cast<const Own<Rule>*>(prepared + 1 + tensor);  // whatever it is, where the step skips
  const TableRow row = call.rows[tensor];
  if (shared.skip | (own.counted == 0)) return clear_slopes<Param>(call);
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const KeepStream stream = {call.arguments.seed, own.step, static_cast<uint32_t>(row.param_index)};
  const Chunk<Rule, Real<Param>> chunk = {own.rule,
                                          shared,
                                          row,
                                          stream,
                                          end,
                                          SliceMeans<Real<Param>>(slice_means<Param>(call), row, begin),
                                          call.slope != nullptr};
  const BlockStep<Rule, Param, State> block = {call, chunk, begin, end};
  const bool aligned = addresses_of<Rule, State>(row) % kAccess == 0;
  if constexpr (kShards) {
    const ChunkMap map(row.map, begin);
    block.run(aligned, false,
              [&]<int kCount>(int64_t tile, int lane) { return shard_keeps<kCount>(chunk, map, tile, lane); });
  } else {
    const bool plain = !chunk.means.first && !chunk.sloped;
    block.run(aligned, plain, [&]<int kCount>(int64_t tile, int lane) { return keeps_of<kCount>(chunk, tile, lane); });
  }
}

template <class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads<Param>, (kMinBlocks<false, Rule, Param>)) step_kernel(Step call) {
  step_chunk<false, Rule, Param, State>(call);
}

// A kernel of its own: what a shard's draws need would cost the other registers.
template <class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads<Param>, (kMinBlocks<true, Rule, Param>)) shard_kernel(Step call) {
  step_chunk<true, Rule, Param, State>(call);
}

template <class Variant, class Param, class State>
const char* launch_pair(const Step& call, const typename Variant::Hyper& hyper) {
  using Rule = typename Variant::template Rule<Real<Param>>;
  const int64_t blocks = (call.tensors + kListThreads - 1) / kListThreads;
  const char* error = LAUNCH((prepare_kernel<Rule, typename Variant::Hyper, Real<Param>>), blocks, kListThreads,
                             call.stream, call, hyper);
  if (error || call.chunks == 0) return error;
  if (call.slices != 0) error = launch_means<Param>(call);
  if (error) return error;
  error = call.shards ? LAUNCH((shard_kernel<Rule, Param, State>), call.chunks, kThreads<Param>, call.stream, call)
                      : LAUNCH((step_kernel<Rule, Param, State>), call.chunks, kThreads<Param>, call.stream, call);
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
