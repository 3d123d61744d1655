// Tensors that are stored otherwise than kernels step them (lrtricks_fused/step/staged.py), on the CPU: a few tiles at
// a time become float32 in buffers that stay in the cache, are stepped there, and are stored again, in one pass.
#pragma once

#include "core/dtype.h"

namespace lrt::cpu {

struct ListWork;
struct TensorWork;

// How one tensor is stored. Its kernel steps float32 throughout; what is float32 in memory is stepped there.
struct Stage {
  Dtype param, grad, state;
  void* mirror;  // of a float32 parameter, or null
  Dtype mirror_dtype;
  int16_t* low;      // completes a BFloat16 parameter to its master, or null
  uint8_t* changes;  // a bit per element, or null
  bool stochastic, stochastic_states;
  int states;  // of the variant
};

// Tiles [first, last) of a tensor that has a stage. Compiled once per instruction set (stage.cpp).
using RunStaged = void (*)(const ListWork& work, const TensorWork& tensor, int64_t first, int64_t last);
template <class Isa>
void run_staged(const ListWork& work, const TensorWork& tensor, int64_t first, int64_t last);

}  // namespace lrt::cpu
