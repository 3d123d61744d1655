// Who draws the words that round (core/rounding.h) the elements of a chunk, and decide which are kept, where any are
// rounded: as warp_tiles.cuh has decisions alone, a warp a tile, a thread the units of kUnit neighbouring lanes of its
// passes.
#pragma once

#include "cuda/mapped_draw.cuh"
#include "cuda/units.cuh"

namespace lrt::cuda {

// As of a type of 16 bits, whose accesses are units.
constexpr int kTilePasses = kPasses<BFloat16>, kTileSpan = kSpan<BFloat16>;
constexpr int kRowUnits = kTileUnits<BFloat16>;
static_assert(kUnit == kSlopeLanes<BFloat16>);

// What rounds a thread's units of one tile: words with the elements' own halves on top.
struct TileWords {
  uint32_t word[kTilePasses][kUnit];

  // As tile_keeps() has the decisions.
  __device__ __forceinline__ uint32_t keeps(uint32_t word_threshold) const {
    uint32_t keeps = 0;
#pragma unroll
    for (int i = 0; i < kTilePasses * kUnit; ++i) {
      keeps |= static_cast<uint32_t>(word[i / kUnit][i % kUnit] < word_threshold) << i;
    }
    return keeps;
  }

  // Those of the pass now go, and those of the next are the first.
  __device__ __forceinline__ void next() {
#pragma unroll
    for (int pass = 0; pass + 1 < kTilePasses; ++pass) {
#pragma unroll
      for (int e = 0; e < kUnit; ++e) word[pass][e] = word[pass + 1][e];
    }
  }
};

// The threads that share a unit of lanes draw a part of these each, for all rows, and tell each other.
template <class Rule>
LRT_DEVICE void draw_words(const Chunk<Rule, float>& chunk, int64_t tile, int thread, TileWords& words) {
  constexpr int kShare = kUnit / kTileSpan, kWords = 4;
  const auto draw_share = [&](int of, uint32_t* own) {
    const int lane = of % kRowUnits * kUnit + of / kRowUnits * kShare;
#pragma unroll
    for (int e = 0; e < kShare; ++e) {
      const auto block = draw(chunk.stream, tile * kLanes + lane + e, Stream::kElement);
#pragma unroll
      for (int w = 0; w < kWords; ++w) own[e * kWords + w] = block.word[w];
    }
  };
  const WarpArrays<uint32_t, kShare * kWords, decltype(draw_share)> drawn(draw_share);
  const int first_row = thread / kRowUnits;
#pragma unroll
  for (int pass = 0; pass < kTilePasses; ++pass) {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      const int source = thread % kRowUnits + e / kShare * kRowUnits;
      const int word = e % kShare * kWords + pass * kTileSpan / 2;  // of two rows, as the one behind it
      const uint32_t lower = drawn.of_thread(source, word), upper = drawn.of_thread(source, word + 1);
      words.word[pass][e] = rounding_word(first_row < 2 ? lower : upper, first_row);
    }
  }
}

template <class Rule>
LRT_DEVICE void draw_words(const WholeDraw<Rule, float>& draws, int64_t tile, int thread, TileWords& words) {
  draw_words(draws.chunk, draws.before + tile, thread, words);
}
template <class Rule>
LRT_DEVICE void draw_words(const MappedDraw<Rule, float>& draws, int64_t tile, int thread, TileWords& words) {
  if (draws.map.has_tiles(draws.chunk.end)) return draw_words(draws.chunk, draws.map.tile(tile), thread, words);
  const int64_t begin = tile * kTile + thread * kUnit;
#pragma unroll 1
  for (int i = 0; i < kTilePasses * kUnit; ++i) {
    const int64_t place = begin + i / kUnit * kWarp * kUnit + i % kUnit;
    const auto [word, row] = element_word(draws.chunk.stream, draws.map.element(place));
    // All move up, for an index that the compiler does not know would put them into memory.
#pragma unroll
    for (int k = 0; k + 1 < kTilePasses * kUnit; ++k) {
      words.word[k / kUnit][k % kUnit] = words.word[(k + 1) / kUnit][(k + 1) % kUnit];
    }
    words.word[kTilePasses - 1][kUnit - 1] = rounding_word(word, row);
  }
}

}  // namespace lrt::cuda
