// What a range's tiles are stepped and rounded by. Those of a tile are drawn while the one before it is at work,
// between its rows: loads stay in flight meanwhile.
#pragma once

#include "cpu/lanes.h"
#include "cpu/work.h"

namespace lrt::cpu {

// What is drawn, and for which tiles. Apart from where it is drawn to, so that what never changes is held in registers.
struct DrawnRange {
  KeepStream key;
  uint32_t threshold;
  int64_t first_tile;
  const int32_t* given;  // decisions that are not drawn here, or null
  bool rounds;           // whether the words are needed, too

  LRT_HD DrawnRange(const ListStep& list, const TensorStep& tensor, const Range& range, bool with_words)
      : key(keep_stream(list, tensor)),
        threshold(list.threshold),
        first_tile(range.first_tile),
        given(range.keeps),
        rounds(with_words) {}
  LRT_HD bool draws() const { return is_masked(threshold) && !given; }
};

// Of a tile, and of the next.
struct TileDraws {
  TileKeeps keeps[2];
  TileWords words[2];

  LRT_HD const int32_t* keeps_of(const DrawnRange& range, int64_t tile) const {
    return range.given ? range.given + tile * kTile : keeps[tile % 2].row[0];
  }
};

// Not inlined, nor is decide_tile: that would save nothing, and cost a fifth of the time that compiling takes.
template <class Isa>
__attribute__((noinline)) void draw_first_tile(const DrawnRange& range, TileDraws& draws) {
  if (!range.given) decide_tile<Isa>(range.key, range.threshold, range.first_tile, draws.keeps[0]);
  if (!range.draws()) draws.keeps[1] = draws.keeps[0];
  for (int lane = 0; range.rounds && lane < kLanes; lane += kPiece) {
    draw_piece<Isa>(range.key, range.threshold, range.first_tile, lane, nullptr, &draws.words[0]);
  }
}

// Before row `row` of a tile: its share of what is drawn for the next.
template <class Isa>
LRT_HD void draw_next_tile(const DrawnRange& range, int64_t tile, int row, TileDraws& draws) {
  const int lane = 8 * row, next = (tile + 1) % 2;
  if (lane % kPiece != 0 || !(range.draws() || range.rounds)) return;
  draw_piece<Isa>(range.key, range.threshold, range.first_tile + tile + 1, lane,
                  range.draws() ? &draws.keeps[next] : nullptr, range.rounds ? &draws.words[next] : nullptr);
}

}  // namespace lrt::cpu
