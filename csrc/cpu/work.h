// What a CPU kernel is called with.
#pragma once

#include "core/dtype.h"
#include "core/record.h"
#include "core/slice_mean.h"
#include "core/update.h"
#include "cpu/prefetch.h"

namespace lrt::cpu {

struct Stage;

// What all tensors of one step share.
struct ListStep {
  const void* hyper;  // the rule's own Hyper struct
  StepScalars scalars;
  uint64_t seed;
  uint32_t threshold;  // of the keep decisions
};

// What all ranges of one tensor share.
struct TensorStep {
  double count, scalar;  // of steps, this one included; and the rule's own number (core/record.h)
  uint32_t param_index;
  int64_t numel;           // from one slot of a ring to the next
  Prefetch prefetch = {};  // see prefetch_policy() in isa.h
};

// One tile-aligned run of one tensor. Pointers are to its first element; sizes in elements.
struct Range {
  void* param;
  const void* grad;
  void* states[kMaxStates];
  int64_t first_tile;  // index of the run's first tile in the whole parameter
  int64_t count;
  double* slopes = nullptr;   // of its tiles, or null
  int64_t metrics_pitch = 0;  // from the slopes to each next sum of the tiles (core/sums.h), or 0: the slopes alone
  const double* row_means = nullptr;  // what the gradient of each row of kLanes loses, or null
  const void* stored_grad = nullptr;  // where `grad` is centralized, which the slope's is not
  const Stage* stage = nullptr;       // where it is stored otherwise than it is stepped: pointers are the tensor's
  int64_t stage_begin = 0;            // then, and this is the range's first element
  const int32_t* keeps = nullptr;     // decisions, as signs, of elements that are not those of the tiles, in order
};

// What the gradient of a row loses; without means a zero, which changes nothing.
template <class Param>
Real<Param> row_mean(const Range& range, int64_t row) {
  return range.row_means ? static_cast<Real<Param>>(range.row_means[row]) : Real<Param>(0);
}

using StepKernel = void (*)(const ListStep&, const TensorStep&, const Range&);

inline KeepStream keep_stream(const ListStep& list, const TensorStep& tensor) {
  return {list.seed, static_cast<uint32_t>(static_cast<uint64_t>(tensor.count)), tensor.param_index};
}

template <class Rule, class Hyper>
LRT_HD Rule rule_of(const ListStep& list, const TensorStep& tensor) {
  return rule_at<Rule>(*static_cast<const Hyper*>(list.hyper), tensor.count, tensor.scalar);
}

}  // namespace lrt::cpu
