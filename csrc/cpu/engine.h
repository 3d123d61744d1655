// Runs one step over a whole list of tensors in one parallel region. Knows no optimizer and no torch.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "cpu/slices.h"
#include "cpu/step_kernel.h"
#include "cpu/strided.h"

namespace lrt::cpu {

// Memory layout of one tensor's operands; an empty entry is contiguous.
struct Layouts {
  std::optional<StridedView> param, grad, states[kMaxStates];
};

struct TensorWork {
  StepKernel kernel;
  Range whole;             // the tensor as one range
  const Layouts* layouts;  // null when every operand is contiguous
  double step;
  uint32_t param_index;
  uint8_t param_size, state_size;  // bytes an element
  Dtype dtype;                     // of the parameter
  int64_t slice_length;            // of the gradient, whose slices lose their means; 0: it stays as it is
  int64_t first_tile, first_slice;  // of the list
};

struct ListWork {
  const void* hyper;
  StepScalars scalars;
  uint64_t seed;
  uint32_t threshold;
  std::vector<TensorWork> tensors;
  int64_t tiles = 0, slices = 0;
  double* means = nullptr;        // of the slices, if there are any
  double* tile_slopes = nullptr;  // where each tile's part of the slope goes, if it is asked for

  void add(TensorWork tensor) {
    tensor.first_tile = tiles;
    tensor.first_slice = slices;
    tiles += (tensor.whole.count + kTile - 1) / kTile;
    if (tensor.slice_length) slices += tensor.whole.count / tensor.slice_length;
    tensors.push_back(tensor);
  }
  // Finds the means of the slices that begin in tiles [begin, end); before any tile is run.
  void find_means(int64_t begin, int64_t end) const;
  // Tiles [begin, end) of the list; ranges that do not meet may run at the same time.
  void run(int64_t begin, int64_t end) const;
  // The slope of the whole list, after all tiles have run.
  double slope() const;

 private:
  // Calls visit(tensor, first, last) for the tiles of each tensor among [begin, end), counted from the tensor's own.
  template <class Visit>
  void for_each_tensor(int64_t begin, int64_t end, const Visit& visit) const;
};

}  // namespace lrt::cpu
