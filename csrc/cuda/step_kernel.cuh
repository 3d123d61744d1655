// The CUDA step: load -> update -> keep -> store over a list of tensors. Knows no optimizer: a template over
// (rule, storage types) that rule.cu instantiates.
//
// Two launches (and two more where gradients are centralized): prepare_kernel advances the step counts and rounds the
// constants, one thread a tensor; step_kernel steps one chunk a block. Every scalar that may live on the device is read
// there, so that a captured graph freezes nothing, and nothing but these two kernels knows whether found_inf is set.
#pragma once

#include "cuda/mapped_draw.cuh"
#include "cuda/prepare.cuh"
#include "cuda/slope.cuh"
#include "cuda/staged.cuh"

namespace lrt::cuda {

// kCount neighbouring lanes of a whole tile, all eight rows; returns their sum of slopes.
template <class Rule, class Param, class State, int kCount, class Draw>
LRT_DEVICE Real<Param> step_lanes(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int lane, const Draw& draw) {
  int64_t element = tile * kTile + lane;
  LoadedAhead<AnyAccess, Rule, Param, State, kCount> loads(chunk.row, element);
  Keeps<kCount> keeps = draw.template lanes<kCount>(tile, lane);
  Slopes<true, Param, kCount> slopes;
#pragma unroll 1
  for (int row = 0; row < kRows; ++row) {
    auto elements = loads.take(chunk.row, element, element + kLanes, row + 1 < kRows);
    step_elements<AnyAccess, false>(chunk, element, static_cast<uint32_t>(keeps), elements, slopes);
    element += kLanes;
    keeps >>= kCount;
  }
  return slopes.unit();
}

// One lane of a tile, which may end with the chunk: all eight rows, all loads first.
template <bool kSloped, class Rule, class Param, class State, class Draw>
LRT_DEVICE Real<Param> step_lane(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int lane, const Draw& draw) {
  const int64_t begin = tile * kTile + lane;
  if (begin >= chunk.end) return 0;
  Elements<Rule, Param, State, 1> rows[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (begin + row * kLanes < chunk.end) rows[row].template load<AlignedAccess>(chunk.row, begin + row * kLanes);
  }
  const Keeps<1> keeps = draw.template lanes<1>(tile, lane);
  Slopes<kSloped, Param, 1> slopes;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int64_t element = begin + row * kLanes;
    if (element < chunk.end) step_elements<AlignedAccess, false>(chunk, element, keeps >> row, rows[row], slopes);
  }
  return slopes.unit();
}

// Blocks per multiprocessor that the compiler shall make room for: 512 threads of up to 128 registers, and fewer where
// that spills; 768 with 16-bit states, which are not loaded ahead, and with few states; 1,024 with both. Left alone it
// aims at more for some kernels, and spills a few registers for it.
template <bool kMapped, bool kSloped, class Rule, class Param, class State>
constexpr int kMinBlocks = [] {
  constexpr bool kMost = Rule::kStates == kMaxStates;
  if (sizeof(Param) == 4) return Rule::kStates < 2 && !kHasRing<Rule> && !kSloped ? 3 : 2;
  if (sizeof(Param) == 8) return 3 - kMost;
  if (sizeof(State) != 2 || kSloped) return 4 - kMost;
  constexpr bool kFew = Rule::kStates < 2;
  return kMost || kHasRing<Rule> || (kFew && kMapped) ? 5 : kFew ? 8 : 6;
}();

// Which operands of a tensor are at multiples of kAccess.
enum class Aligned { kAll, kAllButGradient, kOthers };

// One block's chunk. kSloped: a slope is asked for.
template <bool kSloped, class Rule, class Param, class State>
struct BlockStep {
  static constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>;
  const Step& call;
  const Chunk<Rule, Real<Param>>& chunk;
  int64_t begin, end;

  // The place is found anew each time: a pointer that waits for this would cost the loops registers.
  __device__ __forceinline__ void store_slope(int64_t tile, int unit, Real<Param> slope) const {
    const int64_t of_list = static_cast<int64_t>(blockIdx.x) * kChunkTiles + tile % kChunkTiles;
    slope_units<Param>(call)[of_list * kUnits + unit] = slope;
  }

  // Whole tiles, from the chunk's first to `last`, a thread a unit of lanes.
  template <class Draw>
  __device__ __forceinline__ void step_tiles(int64_t last, const Draw& draw) const {
    constexpr int kAtOnce = kThreads<Param> / kUnits;
    const int unit = static_cast<int>(threadIdx.x) % kUnits;
    for (int64_t tile = begin / kTile + threadIdx.x / kUnits; tile < last; tile += kAtOnce) {
      store_slope(tile, unit, step_lanes<Rule, Param, State, kUnit>(chunk, tile, unit * kUnit, draw));
      if (kAtOnce == kChunkTiles) break;
    }
  }

  // The tiles from `first` on, a thread a lane; or a unit of lanes, where slopes are summed. The last threads begin:
  // they have least to do before.
  template <class Draw>
  __device__ __forceinline__ void step_rest(int64_t first, const Draw& draw) const {
    const int thread = kThreads<Param> - 1 - static_cast<int>(threadIdx.x);
    constexpr int kOwners = kSloped ? kUnits : static_cast<int>(kLanes), kOwned = kLanes / kOwners;
    const int64_t tile = first + thread / kOwners;
    const int owner = thread % kOwners;
    if (tile * kTile >= end) return;
    Real<Param> slope = 0;
#pragma unroll 1
    for (int lane = owner * kOwned; lane < (owner + 1) * kOwned; ++lane) {
      slope = slope + step_lane<kSloped, Rule, Param, State>(chunk, tile, lane, draw);
    }
    if constexpr (kSloped) store_slope(tile, owner, slope);
  }

  // Few tiles are stepped a lane a thread: that takes the time of one access to memory, a whole tile that of eight.
  template <class Draw>
  __device__ __forceinline__ void run(Aligned aligned, bool plain, const Draw& draw) const {
    const bool few = !kSloped && end - begin <= kThreads<Param> * kRows;
    const int64_t last = few ? begin / kTile : end / kTile;
    step_rest(last, draw);  // first: what only it needs is out of the registers then
    if constexpr (kSloped) {
      step_tiles(last, draw);
    } else if (aligned == Aligned::kAll && plain) {
      step_warp_tiles<AlignedAccess, true, Rule, Param, State>(chunk, begin / kTile, last, draw);
    } else if (aligned == Aligned::kAllButGradient && plain) {
      step_warp_tiles<AlignedButGradients, true, Rule, Param, State>(chunk, begin / kTile, last, draw);
    } else {
      step_warp_tiles<AnyAccess, false, Rule, Param, State>(chunk, begin / kTile, last, draw);
    }
  }
};

template <class Rule, class State>
LRT_DEVICE Aligned aligned_of(const TableRow& row) {
  int64_t addresses = row.param;  // the lowest bits say how they are aligned
  for (int k = 0; k < Rule::kStates; ++k) addresses |= row.states[k];
  if constexpr (kHasRing<Rule>) addresses |= row.numel * static_cast<int64_t>(sizeof(State));  // from slot to slot
  if (addresses % kAccess != 0) return Aligned::kOthers;
  return row.grad % kAccess == 0 ? Aligned::kAll : Aligned::kAllButGradient;
}

// The slopes of a chunk that is left alone.
template <class Param>
LRT_DEVICE void clear_slopes(const Step& call) {
  constexpr int kUnits = static_cast<int>(kChunkTiles) * kTileUnits<Param>;
  Real<Param>* const slopes = slope_units<Param>(call) + static_cast<int64_t>(blockIdx.x) * kUnits;
  for (int unit = static_cast<int>(threadIdx.x); unit < kUnits; unit += kThreads<Param>) slopes[unit] = 0;
}

// The chunk of a block. kMapped: of a list among whose tensors are shards that WholeDraw does not serve, or such as lie
// in channels_last. What these draws and a slope need would cost the others registers: they are kernels of their own.
template <bool kMapped, bool kSloped, class Rule, class Param, class State>
__global__ void __launch_bounds__(kThreads<Param>, (kMinBlocks<kMapped, kSloped, Rule, Param, State>))
    step_kernel(Step call) {
  const bool stepped = with_chunk<Rule, Param>(call, [&](const Chunk<Rule, Real<Param>>& chunk, int64_t begin) {
    const BlockStep<kSloped, Rule, Param, State> block = {call, chunk, begin, chunk.end};
    const Aligned aligned = aligned_of<Rule, State>(chunk.row);
    if constexpr (kMapped) {
      block.run(aligned, !chunk.means.first, MappedDraw<Rule, Real<Param>>(chunk, begin));
    } else {
      block.run(aligned, !chunk.means.first, WholeDraw<Rule, Real<Param>>(chunk));
    }
  });
  if (kSloped && !stepped) clear_slopes<Param>(call);
}

template <class Variant, class Param, class State>
const char* launch_pair(const Step& call, const typename Variant::Hyper& hyper) {
  using Rule = typename Variant::template Rule<Real<Param>>;
  static Loaded loaded[2][2];
  void (*const kernels[2][2])(Step) = {
      {step_kernel<false, false, Rule, Param, State>, step_kernel<false, true, Rule, Param, State>},
      {step_kernel<true, false, Rule, Param, State>, step_kernel<true, true, Rule, Param, State>}};
  void (*const kernel)(Step) = kernels[call.mapped][call.slope != nullptr];
  const char* error = loaded[call.mapped][call.slope != nullptr].load(kernel);
  if (!error && call.slope) error = load_slope(call.param);
  if (!error && call.slices != 0) error = launch_means(call);
  if (!error) error = launch_prepare<Variant, Real<Param>>(call, hyper);
  if (error || call.chunks == 0) return error;
  error = LAUNCH(kernel, call.chunks, kThreads<Param>, call.stream, call);
  return error || !call.slope ? error : launch_slope(call);
}

// All launches of one rule's variant for the call's pair of storage types.
template <class Variant>
const char* launch_variant(const Step& call, const typename Variant::Hyper& hyper) {
  if (call.tensors == 0) return nullptr;
  if (call.staged) return launch_staged<Variant>(call, hyper);
  return with_pair<const char*>(
      call.param, call.state, "no kernel for the dtype of the parameters with that of their states",
      [&]<class Param, class State>() { return launch_pair<Variant, Param, State>(call, hyper); });
}

}  // namespace lrt::cuda
