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

template <class Real>
LRT_HD double slope_sum(const Real* values, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum = sum + static_cast<double>(values[i]);
  return sum;
}

}  // namespace lrt
