// Runs one step over a whole list of tensors in one parallel region. Knows no optimizer and no torch.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "core/index_map.h"
#include "cpu/slices.h"
#include "cpu/stage.h"
#include "cpu/strided.h"
#include "cpu/work.h"

namespace lrt::cpu {

// Memory layout of one tensor's operands; an empty entry is contiguous.
struct Layouts {
  std::optional<StridedView> param, grad, states[kMaxStates];
};

// Of a parameter with so many states, TensorWork::slab.
StridedView::Slab slab_of(const Layouts& layouts, int states);

struct TensorWork {
  StepKernel kernel;
  TensorStep step;
  Range whole;                     // the tensor as one range
  const Layouts* layouts;          // null when every operand is contiguous
  const Stage* stage;              // null where it is stored as the kernel steps it
  uint8_t param_size, state_size;  // bytes an element
  Dtype dtype;                     // of the parameter
  StridedView::Slab slab;          // where all operands lie in channels_last; else 0
  int64_t slice_length;            // of the gradient, whose slices lose their means; 0: it stays as it is
  int64_t first_tile;              // tiles of the list before this tensor
  IndexMap map;                    // of a shard whose elements are not those of the tiles from `whole.first_tile` on

  // Makes it a shard.
  void set_map(const IndexMap& index_map);

  // `count` elements of it, from that element of its memory on.
  Range part(int64_t first, int64_t count) const;
};

// Elements that go through buffers at a time, and of which the means are found before they are stepped.
constexpr int64_t kBlock = 8 * kTile, kMeansBlock = 64 * kTile;

constexpr int64_t kGrainTiles = 64;    // 32,768 elements, torch's own grain for elementwise work
constexpr int64_t kMaxSlab = 1 << 15;  // elements, whose decisions go through a buffer

// Steps slabs [first, last) of a tensor whose operands lie in channels_last: in the order of memory, with the decisions
// of the indices. Compiled once per instruction set (slabs.cpp).
using StepSlabs = void (*)(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t last);
template <class Isa>
void step_slabs(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t last);

// Of a tensor with a map, in a masked step, elements [first, first + count): their decisions, as signs; and their step,
// where the operands lie contiguously and no slope is asked for. Compiled once per instruction set (shards.cpp).
template <class Isa>
void decide_shard(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t count, int32_t* keeps);
template <class Isa>
void step_shard(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t count);
struct ShardFunctions {
  void (*decide)(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t count, int32_t* keeps);
  void (*step)(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t count);
};
template <class Isa>
constexpr ShardFunctions kShardFunctions = {decide_shard<Isa>, step_shard<Isa>};

struct ListWork {
  ListStep step;
  std::vector<TensorWork> tensors;
  const SliceFunctions* slice_functions = nullptr;  // where a gradient is centralized
  StepSlabs step_slabs = nullptr;                   // where they lie in channels_last
  const ShardFunctions* shard_functions = nullptr;  // where there is a map
  int64_t tiles = 0;
  double* tile_sums = nullptr;  // where each tile's part of the slope goes, if it is asked for; of each sum, if all are
  int sums = 0;

  void add(TensorWork tensor) {
    tensor.first_tile = tiles;
    tiles += (tensor.step.numel + kTile - 1) / kTile;
    tensors.push_back(tensor);
  }
  // Whether a tensor's decisions must be drawn before its kernel runs.
  bool draws_apart(const TensorWork& tensor) const { return !tensor.map.is_whole() && is_masked(step.threshold); }
  // Tiles [begin, end) of the list; ranges that do not meet may run at the same time.
  void run(int64_t begin, int64_t end) const;
  // The k-th sum over the whole list (core/sums.h), after all tiles have run.
  double sum(int k) const;
};

}  // namespace lrt::cpu
