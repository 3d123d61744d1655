// Who draws for a chunk whose elements are not, in the whole parameter, those of their places in memory: of a shard, or
// of a tensor in channels_last. A Philox call serves eight elements, which lie far apart there. So a block draws for
// all elements between its chunk's first and last, which lie together in the whole parameter, and sorts what it drew by
// places; only then it begins to step, and the map is out of the registers.
#pragma once

#include "cuda/warp_tiles.cuh"

namespace lrt::cuda {

// The keep decisions that one Philox call serves, of a lane of the whole parameter's tiles: bit r is that of row r.
template <class Rule, class Real>
struct LaneKeeps {
  const Chunk<Rule, Real>& chunk;
  int64_t first_tile;
  __device__ __forceinline__ uint8_t operator()(int lane) const {
    const auto number = static_cast<uint32_t>(lane), of_tile = static_cast<uint32_t>(kLanes);
    return static_cast<uint8_t>(keeps_of<1>(chunk, first_tile + number / of_tile, static_cast<int>(number % of_tile)));
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
  BlockBytes<kMost, LaneKeeps<Rule, Real>> drawn;

  __device__ __forceinline__ SpanKeeps(const Chunk<Rule, Real>& chunk, const Span& span)
      : chunk(chunk),
        begin(span.begin / kTile * kTile),
        lanes(span.end - begin <= kMost * kRows ? static_cast<int>((span.end - begin + kTile - 1) / kTile * kLanes)
                                                : 0),
        drawn(lanes, {chunk, begin / kTile}) {}

  __device__ __forceinline__ bool of(int64_t element) const {
    if (lanes == 0) return keep_bits(chunk.stream, element) << 16 < chunk.shared.word_threshold;
    return at(static_cast<uint32_t>(element - begin));
  }
  // The same of the element so many behind `begin`, if there are lanes.
  __device__ __forceinline__ uint32_t at(uint32_t place) const { return drawn.at(lane_of(place)) >> row_of(place) & 1; }
  // Of the eight from a multiple of eight on: bit e is that of the e-th.
  __device__ __forceinline__ uint32_t eight_at(uint32_t place) const {
    const uint64_t lanes = drawn.eight_at(lane_of(place)) >> row_of(place);
    // A bit of each byte, of four bytes the upper four bits of the product.
    const auto four = [](uint64_t bytes) { return (static_cast<uint32_t>(bytes) & 0x01010101u) * 0x10204080u >> 28; };
    return four(lanes) | four(lanes >> 32) << 4;
  }

 private:
  static __device__ __forceinline__ int lane_of(uint32_t place) {
    constexpr uint32_t kInTile = static_cast<uint32_t>(kTile), kInRow = static_cast<uint32_t>(kLanes);
    return static_cast<int>(place / kInTile * kInRow + place % kInRow);
  }
  static __device__ __forceinline__ uint32_t row_of(uint32_t place) {
    return place / static_cast<uint32_t>(kLanes) % kRows;
  }
};

// The decisions on eight neighbouring places of the chunk: bit e is that of place e. None is kept behind its end.
constexpr int kByte = 8;
template <class Rule, class Real>
struct PlaceKeeps {
  const SpanKeeps<Rule, Real>& span;
  const ChunkMap& map;
  int64_t begin;  // of the chunk
  __device__ __forceinline__ uint8_t operator()(int byte) const {
    const int64_t first = begin + byte * kByte;
    uint32_t keeps = 0;
    if (first >= span.chunk.end) return 0;
    const Line line = map.line(first);
    if (span.lanes != 0 && line.count >= kByte && first + kByte <= span.chunk.end) {
      const auto place = static_cast<uint32_t>(line.begin - span.begin);
      if (line.step == 1 && place % kByte == 0) return static_cast<uint8_t>(span.eight_at(place));
#pragma unroll
      for (int e = 0; e < kByte; ++e) keeps |= span.at(place + e * line.step) << e;
      return static_cast<uint8_t>(keeps);
    }
#pragma unroll 1
    for (int e = 0; e < kByte && first + e < span.chunk.end; ++e) {
      keeps |= static_cast<uint32_t>(span.of(map.element(first + e))) << e;
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
  BlockBytes<static_cast<int>(kChunk) / kByte, PlaceKeeps<Rule, Real>> places;

  // `decides`: whether decisions are asked for.
  __device__ __forceinline__ MappedDraw(const Chunk<Rule, Real>& chunk, int64_t begin, bool decides = true)
      : chunk(chunk),
        map(chunk.row, begin),
        begin(begin),
        span(chunk, decides && chunk.shared.masked ? map.span(chunk.end) : Span{0, 0}),
        places(decides && chunk.shared.masked
                   ? static_cast<int>((chunk.end - begin + kTile - 1) / kTile * kTile / kByte)
                   : 0,
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
    if (!chunk.shared.masked) return chunk.shared.template all_or_none<Keeps<kCount>>();
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
