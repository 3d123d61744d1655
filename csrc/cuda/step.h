// One step of a list of tensors on one device: what the launchers of rule.cu receive. No torch in here.
#pragma once

#include "core/arguments.h"
#include "core/pairs.h"
#include "core/record.h"
#include "core/sums.h"
#include "core/table.h"

namespace lrt::cuda {

// Everything a step reads. `rows`, `chunk_tensors` and `prepared` are device memory.
struct Step {
  const TableRow* rows;
  const int32_t* chunk_tensors;  // the tensor of each chunk; a tensor's chunks are consecutive
  void* prepared;                // scratch of prepared_bytes(tensors)
  int64_t tensors, chunks;
  StepArguments arguments;
  Dtype param, state;
  bool mapped;                         // whether maps are needed, see MappedDraw
  bool staged;                         // whether some are stored otherwise than they are stepped (staged.cuh)
  bool stochastic, stochastic_states;  // how their 16-bit parameters and states are rounded
  int64_t slices, partials;            // of all tensors whose gradient is centralized
  void* slice_scratch;                 // the sums of the partials and the means of the slices, in the compute type
  void* slope_scratch;                 // slope_bytes(chunks, param), or null where no slope is asked for
  double* slope;                       // gains the step's slope
  void* stream;
};

constexpr int64_t kPreparedBytes = 128;
constexpr int kListThreads = 128;  // of a block whose threads have an item of a list each: a tensor, a slice, a chunk
LRT_HD constexpr int64_t blocks_of_threads(int64_t items) { return (items + kListThreads - 1) / kListThreads; }

// The partial sums of a slope: units in the compute type, then chunks and columns in double.
template <class Param>
LRT_HD constexpr int64_t slope_unit_bytes(int64_t chunks) {
  return chunks * kChunkTiles * kTileUnits<Param> * static_cast<int64_t>(sizeof(Real<Param>));
}
constexpr int64_t slope_bytes(int64_t chunks, Dtype param) {
  const int64_t units = with_dtype(param, [=]<class Param>() { return slope_unit_bytes<Param>(chunks); });
  return units + (chunks + kSlopeColumns) * static_cast<int64_t>(sizeof(double));
}

constexpr int64_t slice_bytes(int64_t slices, int64_t partials, Dtype param) {
  const auto size = with_dtype(param, [&]<class Param>() { return static_cast<int64_t>(sizeof(Real<Param>)); });
  return (slices + partials) * size;
}

constexpr int64_t prepared_bytes(int64_t tensors) { return kPreparedBytes * (1 + tensors); }

// The launches of one rule's variant. Returns the error's text, or null; a pair of storage types that is not offered is
// an error. Defined in rule.cu, compiled once per rule.
template <class Record>
const char* launch(const Step& step, const typename Record::Hyper& hyper, const Flags<Record>& flags);

// The means of all slices whose gradients are centralized, which the step's kernel takes. Defined in slices.cu.
const char* launch_means(const Step& step);

// What adds the slopes that the step's kernel has left to the total; and what loads that on the current device, before
// anything is stepped. Defined in slope.cu.
const char* launch_slope(const Step& step);
const char* load_slope(Dtype param);

// The squared norm of each gradient (core/squares.h), to squares[tensors]. Of `step` it needs the rows and chunks, the
// dtype of the parameters, the scratch of a slope and the stream. Defined in squares.cu.
const char* launch_squared_norms(const Step& step, double* squares);

// norm and clip become what core/squares.h says of `count` gradients. Behind their squares there is room for columns.
const char* launch_clip(double* squares, int64_t count, Scalar grad_scale, double max_norm, double* norm, double* clip,
                        void* stream);

}  // namespace lrt::cuda
