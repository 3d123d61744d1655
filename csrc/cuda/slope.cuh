// The later stages of a slope (core/slope.h), or of sums in its order: units to chunks, chunks to columns where there
// are more of them, columns to the total. No barriers: each is a launch of its own. The order of the sums is fixed, and
// they are few: what takes time is waiting for memory, so a warp reads at once what one of its threads would read one
// after another.
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

// The number of a thread, or of its warp, in all of a launch.
LRT_DEVICE int64_t launch_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
LRT_DEVICE int64_t launch_warp() { return launch_thread() / kWarp; }
LRT_DEVICE bool leads_warp() { return threadIdx.x % kWarp == 0; }

LRT_HD int64_t blocks_of_warps(int64_t count) { return blocks_of_threads(count * kWarp); }

// The sum of kSlopeColumns numbers at most, from the first to the last, which all threads of a warp learn.
LRT_DEVICE double warp_sum(const double* values, int64_t count) {
  constexpr int kShare = static_cast<int>(kSlopeColumns) / kWarp;
  const auto read = [&](int thread, double* own) {
#pragma unroll
    for (int k = 0; k < kShare; ++k) own[k] = k * kWarp + thread < count ? values[k * kWarp + thread] : 0.0;
  };
  const WarpArrays<double, kShare, decltype(read)> shares(read);
  double sum = 0.0;
#pragma unroll
  for (int k = 0; k < kShare; ++k) {
    if (k * kWarp >= count) break;
#pragma unroll
    for (int thread = 0; thread < kWarp; ++thread) sum = sum + shares.of_thread(thread, k);
  }
  return sum;
}

// A warp a chunk, a thread a tile; tiles that are not there add nothing.
template <class Param>
__global__ void sum_chunks(Step call) {
  const int64_t chunk = launch_warp();
  if (chunk >= call.chunks) return;
  const TableRow& row = call.rows[call.chunk_tensors[chunk]];
  const int64_t begin = (chunk - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const Real<Param>* units = slope_units<Param>(call) + chunk * kChunkTiles * kTileUnits<Param>;
  const auto sum_tile = [&](int tile) {
    const bool there = tile < kChunkTiles && tile * kTile < end - begin;
    return there ? slope_sum(units + tile * kTileUnits<Param>, kTileUnits<Param>) : 0.0;
  };
  const WarpValues<double, decltype(sum_tile)> tiles(sum_tile);
  double sum = 0.0;
#pragma unroll
  for (int tile = 0; tile < kChunkTiles; ++tile) sum = sum + tiles.of_thread(tile);
  if (leads_warp()) slope_chunks<Param>(call)[chunk] = sum;
}

// Columns, a thread each, lie behind the values. Values that are no more than the columns are these themselves. Columns
// and total are one kernel, launched twice: so both are loaded, whichever a step before a capture needed.
LRT_DEVICE void sum_column(double* values, int64_t count) {
  const int64_t column = threadIdx.x;
  values[count + column] =
      slope_sum(values + column, (count - column + kSlopeColumns - 1) / kSlopeColumns, kSlopeColumns);
}
LRT_DEVICE double columns_sum(const double* values, int64_t count) {
  return count <= kSlopeColumns ? warp_sum(values, count) : warp_sum(values + count, kSlopeColumns);
}

}  // namespace lrt::cuda
