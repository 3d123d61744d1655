// The later stages of a slope (core/slope.h): units to chunks, chunks to columns, columns to the total. No barriers:
// each is a launch of its own, and a thread owns what it sums.
#pragma once

#include "cuda/launch.h"
#include "cuda/step.h"

namespace lrt::cuda {

template <class Param>
LRT_DEVICE Real<Param>* slope_units(const Step& call) {
  return static_cast<Real<Param>*>(call.slope_scratch);
}

template <class Param>
LRT_DEVICE double* slope_chunks(const Step& call) {
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
  double sum = 0.0;
  for (int64_t tile = 0; tile * kTile < end - begin; ++tile) {
    sum = sum + slope_sum(units + tile * kTileUnits<Param>, kTileUnits<Param>);
  }
  slope_chunks<Param>(call)[chunk] = sum;
}

// The columns lie behind the values.
static __global__ void sum_columns(double* values, int64_t count) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kSlopeColumns) sum = sum + values[i];
  values[count + threadIdx.x] = sum;
}

template <class Param>
__global__ void add_slope(Step call) {
  if (call.arguments.skips()) return;
  const double sum = slope_sum(slope_chunks<Param>(call) + call.chunks, kSlopeColumns);
  *call.slope = *call.slope + sum * call.arguments.inverse_grad_scale();
}

template <class Param>
const char* launch_slope(const Step& call) {
  const char* error =
      LAUNCH((sum_chunks<Param>), (call.chunks + kListThreads - 1) / kListThreads, kListThreads, call.stream, call);
  if (!error)
    error =
        LAUNCH(sum_columns, 1, static_cast<int>(kSlopeColumns), call.stream, slope_chunks<Param>(call), call.chunks);
  return error ? error : LAUNCH((add_slope<Param>), 1, 1, call.stream, call);
}

}  // namespace lrt::cuda
