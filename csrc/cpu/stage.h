// Tensors that are stored otherwise than kernels step them (lrtricks_fused/step/staged.py): a tile at a time becomes
// float32 in buffers that stay in the first cache, is stepped there, and is stored again.
#pragma once

#include "core/index_map.h"
#include "cpu/lanes.h"
#include "cpu/work.h"

namespace lrt::cpu {

// What of it decides by which code a tensor is stepped.
struct StoredAs {
  Dtype param, grad, state, mirror = Dtype::kFloat;  // of a mirror that there is not: float32
  bool split = false, changes = false, stochastic = false, stochastic_states = false;

  LRT_HD constexpr bool rounds() const { return stochastic || stochastic_states; }
  LRT_HD constexpr bool operator==(const StoredAs&) const = default;
};

// How one tensor is stored, and what lies beside it. What is float32 in memory is stepped there.
struct Stage {
  StoredAs as;
  void* mirror;         // of a float32 parameter, or null
  int16_t* low;         // completes a BFloat16 parameter to its master, or null
  uint8_t* changes;     // a bit per element, or null
  const IndexMap* map;  // of a shard whose elements are not those of tiles, or null
};

// The tiles of a range.
struct StagedTiles {
  const Range& range;
  const Stage& stage;
  KeepStream key;
  Prefetch prefetch;
  int states;                        // of the variant
  const TileWords* words = nullptr;  // what rounds the tile that is stored, where it is not drawn element by element
};

// Where a tile is in float32: in memory, or in buffers.
struct StagedTile {
  float* params;
  const float* grads;
  float* states[kMaxStates];
};

// The tile, or a part of it, that begins at element `begin` of the range. Compiled once per instruction set, as the
// next two (stage.cpp).
template <class Isa>
StagedTile bring_tile(StagedTiles& tiles, int64_t begin, int count);
// Asks for the lines that the row at that place in the next tile will need.
template <class Isa>
void ask_next_tile(const StagedTiles& tiles, int64_t begin);
// The same tile after its step, and its share of the sums, where these are asked for.
template <class Isa>
void store_tile(StagedTiles& tiles, const StagedTile& tile, int64_t begin, int count, const int32_t* keeps,
                float (*sums)[kLanes]);

}  // namespace lrt::cpu
