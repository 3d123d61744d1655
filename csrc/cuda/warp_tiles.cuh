// Whole tiles, each stepped by a warp, whose threads access neighbouring elements: kSpan rows at once. DRAM is fast
// where what is asked for at one time lies together, and 16-bit rows are too short for that.
#pragma once

#include "cuda/ring.cuh"

namespace lrt::cuda {

// Rows that a warp accesses at once, an access a thread.
template <class Param>
constexpr int kSpan = kWarp / kTileUnits<Param>;
template <class Param>
constexpr int kPasses = kRows / kSpan<Param>;  // of a warp over a tile

// The keep decisions of a warp on a tile: bit pass * kUnit + e is that on element e of the thread's row of that pass.
// The threads that share a unit of lanes, for every kSpan-th row each, draw a part of its lanes each, for all rows.
template <class Param, class Rule>
LRT_DEVICE uint32_t tile_keeps(const Chunk<Rule, Real<Param>>& chunk, int64_t tile, int thread) {
  constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>, kShare = kUnit / kSpan<Param>;
  uint32_t own_rows = 0;
  for (int row = 0; row < kRows; row += kSpan<Param>) own_rows |= ((1u << kShare) - 1) << row * kShare;
  const auto draw = [&](int of) {
    return static_cast<uint32_t>(keeps_of<kShare>(chunk, tile, of % kUnits * kUnit + of / kUnits * kShare));
  };
  const WarpValues<uint32_t, decltype(draw)> drawn(draw);
  uint32_t keeps = 0;
#pragma unroll
  for (int part = 0; part < kSpan<Param>; ++part) {
    const uint32_t rows = drawn.of_thread(thread % kUnits + part * kUnits) >> thread / kUnits * kShare;
    keeps |= (rows & own_rows) << part * kShare;
  }
  return keeps;
}

// Who draws for a parameter that is whole, or a shard whose tiles follow each other as tiles of the whole one: so many
// neighbouring lanes of a tile, for all eight rows, or a warp's tile.
template <class Rule, class Real>
struct WholeDraw {
  const Chunk<Rule, Real>& chunk;
  int64_t before;  // tiles of the whole parameter

  explicit LRT_HD WholeDraw(const Chunk<Rule, Real>& chunk) : chunk(chunk), before(chunk.row.map.base / kTile) {}
  template <int kCount>
  __device__ __forceinline__ Keeps<kCount> lanes(int64_t tile, int lane) const {
    return keeps_of<kCount>(chunk, before + tile, lane);
  }
  template <class Param>
  __device__ __forceinline__ uint32_t passes(int64_t tile, int thread) const {
    return tile_keeps<Param>(chunk, before + tile, thread);
  }
};

// The tiles from the warp's own to `last`.
template <class Access, bool kPlain, class Rule, class Param, class State, class Draw>
LRT_DEVICE void step_warp_tiles(const Chunk<Rule, Real<Param>>& chunk, int64_t first, int64_t last, const Draw& draw) {
  constexpr int kUnit = kSlopeLanes<Param>, kWarps = kThreads<Param> / kWarp;
  constexpr int kUnrolled = !kPlain ? 1 : kPasses<Param> < 4 ? kPasses<Param> : 4;
  const int thread = static_cast<int>(threadIdx.x) % kWarp;
  int64_t tile = first + threadIdx.x / kWarp;
  if (tile >= last) return;
  constexpr int64_t kPass = kWarp * kUnit, kNextTile = kWarps * kTile - (kPasses<Param> - 1) * kPass;
  int64_t element = tile * kTile + thread * kUnit;
  Slopes<false, Param, kUnit> none;
  LoadedAhead<Access, Rule, Param, State, kUnit> loads(chunk.row, element);
  while (tile < last) {
    uint32_t keeps = draw.template passes<Param>(tile, thread);
    tile += kWarps;
#pragma unroll kUnrolled
    for (int pass = 0; pass < kPasses<Param>; ++pass) {
      const int64_t begin = element;
      const bool more = pass + 1 < kPasses<Param>;
      element = begin + (more ? kPass : kNextTile);
      auto elements = loads.take(chunk.row, begin, element, more || tile < last);
      step_elements<Access, kPlain>(chunk, begin, keeps, elements, none);
      keeps >>= kUnit;
    }
  }
}

}  // namespace lrt::cuda
