// The slope of a step, <grad, old_param - new_param>, summed in one order on every backend, so that it is the same
// number everywhere. A lane of a tile sums its eight rows, a unit of neighbouring lanes these, both in the compute
// type; then in double a tile its units, a chunk its tiles, kSlopeColumns columns every so many-th chunk, and last the
// columns. Each of these sums runs from the first to the last.
#pragma once

#include "core/dtype.h"
#include "core/keep.h"

namespace lrt {

constexpr int64_t kChunk = 8192;  // elements of one tensor that a GPU block steps
constexpr int64_t kChunkTiles = kChunk / kTile;
constexpr int64_t kSlopeColumns = 256;

template <class Param>
constexpr int kSlopeLanes = 16 / sizeof(Param);  // of a unit: what a GPU thread moves in one access
template <class Param>
constexpr int kTileUnits = static_cast<int>(kLanes) / kSlopeLanes<Param>;

// One element's share. The gradient as it is stored, and the displacement of the stored parameter: what a mask, weight
// decay, momentum or rounding made of the step is in it.
template <class Real>
LRT_HD Real slope_term(Real grad, Real old_param, Real new_param) {
  return grad * (old_param - new_param);
}

template <int kCount, class Real>
LRT_HD Real slope_unit(const Real* lanes) {
  Real unit = lanes[0];
  for (int i = 1; i < kCount; ++i) unit = unit + lanes[i];
  return unit;
}

// Every stride-th value, one after the other; read in batches, because a GPU's thread waits for what it reads.
template <class Real>
LRT_HD double slope_sum(const Real* values, int64_t count, int64_t stride = 1) {
  constexpr int kBatch = 16;
  double sum = 0.0;
  int64_t i = 0;
  for (; i + kBatch <= count; i += kBatch) {
    Real batch[kBatch];
    for (int k = 0; k < kBatch; ++k) batch[k] = values[(i + k) * stride];
    for (int k = 0; k < kBatch; ++k) sum = sum + static_cast<double>(batch[k]);
  }
  for (; i < count; ++i) sum = sum + static_cast<double>(values[i * stride]);
  return sum;
}

}  // namespace lrt
