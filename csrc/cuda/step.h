// One step of a list of tensors on one device: what the launchers in rule_*.cu receive. No torch in here.
#pragma once

#include "core/dtype.h"
#include "core/table.h"
#include "rules/adabelief.h"
#include "rules/adam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace lrt::cuda {

constexpr int64_t kChunk = 8192;  // elements a block steps; Python makes the list of chunks with it (table.py)

// A hyper-parameter that is a number, or one float32 or float64 on the device, read when the kernel runs.
struct DeviceNumber {
  double value;
  const void* address;  // null: the number
  bool is_double;
};

// Everything a step reads. `rows`, `chunk_tensors` and `prepared` are device memory.
struct Step {
  const TableRow* rows;
  const int32_t* chunk_tensors;  // the tensor of each chunk; a tensor's chunks are consecutive
  void* prepared;                // scratch of prepared_bytes(tensors)
  int64_t tensors, chunks;
  DeviceNumber lr, keep_prob, grad_weight, grad_scale, found_inf;
  double weight_decay;
  bool decoupled_weight_decay, maximize;
  uint64_t seed;
  Dtype param, state;
  void* stream;
};

constexpr int64_t kPreparedBytes = 64;
constexpr int64_t prepared_bytes(int64_t tensors) { return kPreparedBytes * (1 + tensors); }

// Each returns the error's text, or null. A pair of storage types that is not offered is an error.
const char* launch_sgd(const Step& step, const SGDHyper& hyper, bool momentum, bool nesterov);
const char* launch_adam(const Step& step, const AdamHyper& hyper, bool amsgrad);
const char* launch_rmsprop(const Step& step, const RMSpropHyper& hyper, bool centered, bool momentum);
const char* launch_radam(const Step& step, const RAdamHyper& hyper);
const char* launch_adabelief(const Step& step, const AdaBeliefHyper& hyper);

}  // namespace lrt::cuda
