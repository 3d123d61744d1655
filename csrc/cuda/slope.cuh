// The later stages of a slope (core/slope.h): units to chunks, chunks to columns where there are more of them, columns
// to the total. No barriers: each is a launch of its own, and a thread owns what it sums.
#pragma once

#include "cuda/launch.h"
#include "cuda/step.h"

namespace lrt::cuda {

template <class Param>
LRT_DEVICE Real<Param>* slope_units(const Step& call) {
  return static_cast<Real<Param>*>(call.slope_scratch);
}

template <class Param>
LRT_HD double* slope_chunks(const Step& call) {  // which the host hands to a kernel, too
  return reinterpret_cast<double*>(static_cast<char*>(call.slope_scratch) + slope_unit_bytes<Param>(call.chunks));
}

template <class Param>
__global__ void sum_chunks(Step call) {
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (chunk >= call.chunks) return;
  const TableRow& row = call.rows[call.chunk_tensors[chunk]];
  const int64_t begin = (chunk - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const Real<Param>* units = slope_units<Param>(call) + chunk * kChunkTiles * kTileUnits<Param>;
  constexpr int kBatch = 4;  // tiles whose sums wait for memory at the same time; those that are not there add nothing
  double sum = 0.0;
  for (int64_t tile = 0; tile * kTile < end - begin; tile += kBatch) {
    double tiles[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const bool there = (tile + k) * kTile < end - begin;
      tiles[k] = there ? slope_sum(units + (tile + k) * kTileUnits<Param>, kTileUnits<Param>) : 0.0;
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) sum = sum + tiles[k];
  }
  slope_chunks<Param>(call)[chunk] = sum;
}

// Columns, a thread each, lie behind the values. Values that are no more than the columns are these themselves. Columns
// and total are one kernel, launched twice: so both are loaded, whichever a step before a capture needed.
LRT_DEVICE void sum_column(double* values, int64_t count) {
  const int64_t column = threadIdx.x;
  values[count + column] =
      slope_sum(values + column, (count - column + kSlopeColumns - 1) / kSlopeColumns, kSlopeColumns);
}
LRT_DEVICE double columns_sum(const double* values, int64_t count) {
  return count <= kSlopeColumns ? slope_sum(values, count) : slope_sum(values + count, kSlopeColumns);
}

template <class Param>
__global__ void add_slope(Step call, bool columns) {
  if (columns) return sum_column(slope_chunks<Param>(call), call.chunks);
  if (call.arguments.skips()) return;
  const double sum = columns_sum(slope_chunks<Param>(call), call.chunks);
  *call.slope = *call.slope + sum * call.arguments.inverse_grad_scale();
}

template <class Param>
const char* launch_slope(const Step& call) {
  const int64_t blocks = (call.chunks + kListThreads - 1) / kListThreads;
  const char* error = LAUNCH((sum_chunks<Param>), blocks, kListThreads, call.stream, call);
  if (!error && call.chunks > kSlopeColumns)
    error = LAUNCH((add_slope<Param>), 1, static_cast<int>(kSlopeColumns), call.stream, call, true);
  return error ? error : LAUNCH((add_slope<Param>), 1, 1, call.stream, call, false);
}

}  // namespace lrt::cuda
