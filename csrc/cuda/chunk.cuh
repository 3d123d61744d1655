// What the kernels that step a chunk are made of: its constants, its keep decisions, the gradients it sees.
#pragma once

#include <type_traits>

#include "cuda/access.cuh"
#include "cuda/slices.cuh"

namespace lrt::cuda {

// Whether a thread asks for its next elements before it computes with those that it has. That takes registers, of which
// 16-bit states leave less: there more threads are better (docs/gpu.md has the figures).
template <class State>
constexpr bool kLoadsAhead = sizeof(State) >= 4;
// Of a block that steps a chunk.
template <class Param>
constexpr int kThreads = sizeof(Param) == 4 ? 256 : 128;

// What all tensors of a call share, and what each has of its own, in the compute type.
template <class Real>
struct Shared {
  UpdateScalars<Real> scalars;
  uint32_t word_threshold;  // an element is kept iff its 16 bits, in the upper half of a word, are below
  bool masked, skip;

  // The decisions on many elements where nothing is drawn.
  template <class Keeps>
  LRT_HD Keeps all_or_none() const {
    return word_threshold ? ~Keeps{0} : Keeps{0};
  }
};
template <class Rule>
struct Own {
  Rule rule;
  uint32_t step;
  uint32_t counted;  // whether the count of steps was one; else the tensor is left alone
};
struct alignas(16) Prepared {
  char bytes[kPreparedBytes];
};

// What the threads of a block share.
template <class Rule, class Real>
struct Chunk {
  const Rule& rule;
  const Shared<Real>& shared;
  const TableRow& row;
  KeepStream stream;
  int64_t end;  // of its elements
  SliceMeans<Real> means;
};

// body(chunk, its first element) of the block, unless its tensor is left alone; whether it is not.
template <class Rule, class Param, class Body>
LRT_DEVICE bool with_chunk(const Step& call, const Body& body) {
  const Prepared* prepared = static_cast<const Prepared*>(call.prepared);
  const int32_t tensor = call.chunk_tensors[blockIdx.x];
  const auto shared = *reinterpret_cast<const Shared<Real<Param>>*>(prepared);
  const auto own = *reinterpret_cast<const Own<Rule>*>(prepared + 1 + tensor);  // whatever it is, where the step skips
  const TableRow row = call.rows[tensor];
  if (shared.skip | (own.counted == 0)) return false;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const KeepStream stream = {call.arguments.seed, own.step, static_cast<uint32_t>(row.param_index)};
  const Chunk<Rule, Real<Param>> chunk = {
      own.rule, shared, row, stream, end, SliceMeans<Real<Param>>(slice_means<Param>(call), row, begin)};
  body(chunk, begin);
  return true;
}

constexpr int kRows = static_cast<int>(kTile / kLanes);

// Keep decisions on kCount neighbouring lanes of a tile: bit row * kCount + e is that of lane e.
template <int kCount>
using Keeps = std::conditional_t<kCount * kRows <= 32, uint32_t, uint64_t>;

template <int kCount, class Rule, class Real>
LRT_DEVICE Keeps<kCount> keeps_of(const Chunk<Rule, Real>& chunk, int64_t tile, int lane) {
  const uint32_t threshold = chunk.shared.word_threshold;
  Keeps<kCount> keeps = 0;
  if (!chunk.shared.masked) return chunk.shared.template all_or_none<Keeps<kCount>>();
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    // An "or": lanes are fewer than what their tile's number is a multiple of, and there is nothing to carry.
    const PhiloxBlock<uint32_t> draws = draw(chunk.stream, tile * kLanes | (lane + e), Stream::kElement);
    Keeps<kCount> lane_keeps = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      // The row's draw in the upper half; what is below does not reach the threshold.
      const uint32_t bits = row % 2 ? draws.word[row / 2] : draws.word[row / 2] << 16;
      if (bits < threshold) lane_keeps |= Keeps<kCount>(1) << (row * kCount);
    }
    keeps |= lane_keeps << e;
  }
  return keeps;
}

// The gradients of kCount elements that the rule sees. kPlain: there are no means, which else is looked up.
template <bool kPlain, class Param, int kCount, class Rule>
LRT_DEVICE Vector<Param, kCount> seen_grads(const Chunk<Rule, Real<Param>>& chunk, int64_t begin,
                                            Vector<Param, kCount> grads) {
  if constexpr (!kPlain) {
    if (chunk.means.first) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) grads.value[e] = centralized(grads.value[e], chunk.means.of(begin + e));
    }
  }
  return grads;
}

}  // namespace lrt::cuda
