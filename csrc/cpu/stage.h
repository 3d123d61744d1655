// Tensors that are stored otherwise than kernels step them (lrtricks_fused/step/staged.py): a row at a time becomes
// float32 in buffers that stay in the first cache, is stepped there, and is stored again.
#pragma once

#include "core/index_map.h"
#include "cpu/lanes.h"
#include "cpu/work.h"

namespace lrt::cpu {

// How one tensor is stored. What is float32 in memory is stepped there.
struct Stage {
  Dtype param, grad, state;
  void* mirror;  // of a float32 parameter, or null
  Dtype mirror_dtype;
  int16_t* low;      // completes a BFloat16 parameter to its master, or null
  uint8_t* changes;  // a bit per element, or null
  bool stochastic, stochastic_states;
  const IndexMap* map;  // of a shard whose elements are not those of tiles, or null

  bool rounds() const { return stochastic || stochastic_states; }
};

// What a row is staged with.
struct RowBuffers {
  alignas(64) float param[kLanes], grad[kLanes], states[kMaxStates][kLanes], before[kLanes], after[kLanes];
  alignas(64) uint32_t words[kLanes];
  alignas(64) int32_t changed[kLanes];
};

// The rows of a range.
struct StagedRows {
  const Range& range;
  const Stage& stage;
  KeepStream key;
  Prefetch prefetch;
  int states;          // of the variant
  TileWords words[2];  // what rounds one tile, and the next
  RowBuffers buffers;
};

// Where a row is in float32: in memory, or in buffers.
struct StagedRow {
  float* params;
  const float* grads;
  float* states[kMaxStates];
};

// A row that begins at element `begin` of the range; asks for the lines that a later one will need. Compiled once per
// instruction set, as the next (stage.cpp).
template <class Isa>
StagedRow bring_row(StagedRows& rows, int64_t begin, int count);
// The same row after its step, and its share of the sums, where these are asked for.
template <class Isa>
void store_row(StagedRows& rows, const StagedRow& row, int64_t begin, int count, const int32_t* keeps,
               float (*sums)[kLanes]);

}  // namespace lrt::cpu
