// Who draws for a chunk whose elements are not, in the whole parameter, those of their places in memory: of a shard, or
// of a tensor in channels_last. A Philox call serves eight elements of a tile, which lie far apart there. So a block
// draws for all elements between its chunk's first and last, which lie together in the whole parameter, and sorts what
// it drew by places; only then it begins to step, and the map is out of the registers.
#pragma once

#include "cuda/warp_tiles.cuh"

namespace lrt::cuda {

// The keep decisions that one Philox call serves, of a lane of the whole parameter's tiles: bit r is that of row r.
template <class Rule, class Real>
struct LaneKeeps {
  const Chunk<Rule, Real>& chunk;
  int64_t first_tile;
  __device__ __forceinline__ uint8_t operator()(int lane) const {
    return static_cast<uint8_t>(keeps_of<1>(chunk, first_tile + lane / kLanes, static_cast<int>(lane % kLanes)));
  }
};

// Those of all elements from the first tile on that has one of the chunk's, in so many lanes; or none of them, where a
// call for each of the chunk's elements takes less.
template <class Rule, class Real>
struct SpanKeeps {
  static constexpr int kMost = static_cast<int>(kChunk);
  const Chunk<Rule, Real>& chunk;
  int64_t begin;
  int lanes;
  BlockValues<uint8_t, kMost, LaneKeeps<Rule, Real>> drawn;

  __device__ __forceinline__ SpanKeeps(const Chunk<Rule, Real>& chunk, const Span& span)
      : chunk(chunk),
        begin(span.begin / kTile * kTile),
        lanes(span.end - begin <= kMost * kRows ? static_cast<int>((span.end - begin + kTile - 1) / kTile * kLanes) : 0),
        drawn(lanes, {chunk, begin / kTile}) {}

  __device__ __forceinline__ bool of(int64_t element) const {
    if (lanes == 0) return keep_bits(chunk.stream, element) << 16 < chunk.shared.word_threshold;
    const auto place = static_cast<uint32_t>(element - begin);
    constexpr uint32_t kInTile = static_cast<uint32_t>(kTile), kInRow = static_cast<uint32_t>(kLanes);
    return drawn.at(place / kInTile * kInRow + place % kInRow) >> place / kInRow % kRows & 1;
  }
};

// The decisions on eight neighbouring places of the chunk: bit e is that of place e.
constexpr int kByte = 8;
template <class Rule, class Real>
struct PlaceKeeps {
  const SpanKeeps<Rule, Real>& span;
  const ChunkMap& map;
  int64_t begin;  // of the chunk
  __device__ __forceinline__ uint8_t operator()(int byte) const {
    const int64_t first = begin + byte * kByte;
    uint32_t keeps = 0;
#pragma unroll
    for (int e = 0; e < kByte; ++e) {
      if (first + e < span.chunk.end && span.of(map.element(first + e))) keeps |= 1u << e;
    }
    return static_cast<uint8_t>(keeps);
  }
};

template <class Rule, class Real>
struct MappedDraw {
  const Chunk<Rule, Real>& chunk;
  ChunkMap map;
  int64_t begin;
  SpanKeeps<Rule, Real> span;
  BlockValues<uint8_t, static_cast<int>(kChunk) / kByte, PlaceKeeps<Rule, Real>> places;

  __device__ __forceinline__ MappedDraw(const Chunk<Rule, Real>& chunk, int64_t begin)
      : chunk(chunk),
        map(chunk.row, begin),
        begin(begin),
        span(chunk, chunk.shared.masked ? map.span(chunk.end) : Span{0, 0}),
        places(chunk.shared.masked ? static_cast<int>((chunk.end - begin + kByte - 1) / kByte) : 0,
               {span, map, begin}) {}

  template <int kCount>
  __device__ __forceinline__ Keeps<kCount> lanes(int64_t tile, int lane) const {
    return rows<kCount, kRows, static_cast<int>(kLanes)>(tile * kTile + lane);
  }
  template <class Param>
  __device__ __forceinline__ uint32_t passes(int64_t tile, int thread) const {
    constexpr int kUnit = kSlopeLanes<Param>;
    return rows<kUnit, kPasses<Param>, kWarp * kUnit>(tile * kTile + thread * kUnit);
  }

 private:
  // On kCount places from each of kTimes on, kPitch apart.
  template <int kCount, int kTimes, int kPitch>
  __device__ __forceinline__ Keeps<kCount> rows(int64_t first) const {
    Keeps<kCount> keeps = 0;
    if (!chunk.shared.masked) return chunk.shared.word_threshold ? ~keeps : keeps;
#pragma unroll
    for (int row = 0; row < kTimes; ++row) {
      const auto place = static_cast<uint32_t>(first - begin) + row * kPitch;
      const uint32_t own = places.at(place / kByte) >> place % kByte & ((1u << kCount) - 1);
      keeps |= Keeps<kCount>(own) << (row * kCount);
    }
    return keeps;
  }
};

}  // namespace lrt::cuda
