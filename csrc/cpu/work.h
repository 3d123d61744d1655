// What a CPU kernel is called with.
#pragma once

#include "core/dtype.h"
#include "core/update.h"

namespace lrt::cpu {

// One tile-aligned run of one tensor. Pointers are to its first element; sizes in elements.
struct Range {
  void* param;
  const void* grad;
  void* states[kMaxStates];
  int64_t first_tile;  // index of the run's first tile in the whole parameter
  int64_t count;
  double* slopes;                     // of its tiles, or null
  int64_t whole_count = 0;            // of the whole parameter: from one slot of a ring to the next
  const void* stored_grad = nullptr;  // where `grad` is centralized, which the slope's is not
  bool prefetch = false;              // see prefetches() in isa.h
};

// What all ranges of one tensor share in one step.
struct TensorStep {
  const void* hyper;  // the rule's own Hyper struct
  StepScalars scalars;
  KeepStream key;
  uint32_t threshold;
  double step, scalar;  // the count, and the rule's own number (core/record.h), of this step
};

using StepKernel = void (*)(const TensorStep&, const Range&);

}  // namespace lrt::cpu
