// Squared norms of gradients (core/squares.h): the units of a slope, here of squares, then chunks, columns and tensors.
#include "core/squares.h"
#include "cuda/chunk.cuh"
#include "cuda/slope.cuh"

namespace lrt::cuda {
namespace {

// kCount neighbouring lanes of a tile, all eight rows. A single lane may end with the chunk, several are whole.
template <class Param, int kCount>
LRT_DEVICE Real<Param> square_lanes(const TableRow& row, int64_t tile, int lane, int64_t end) {
  Real<Param> lanes[kCount] = {};
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const int64_t element = tile * kTile + r * kLanes + lane;
    if (kCount > 1 || element < end) {
      const Vector<Param, kCount> grads = vector_at<Param, kCount>(row.grad, element);
#pragma unroll
      for (int e = 0; e < kCount; ++e) lanes[e] = lanes[e] + square_term(to_real(grads.value[e]));
    }
  }
  return slope_unit<kCount>(lanes);
}

template <class Param>
__global__ void __launch_bounds__(kThreads) square_units(Step call) {
  constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>;
  const TableRow row = call.rows[call.chunk_tensors[blockIdx.x]];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const int64_t last_tile = row.grad % kAccess == 0 ? end / kTile : begin / kTile;  // of those in wide accesses
  const int unit = threadIdx.x % kUnits;
  Real<Param>* const units = slope_units<Param>(call) + static_cast<int64_t>(blockIdx.x) * kChunkTiles * kUnits + unit;
  int64_t tile = begin / kTile + threadIdx.x / kUnits;
  for (; tile < last_tile; tile += kThreads / kUnits) {
    units[tile % kChunkTiles * kUnits] = square_lanes<Param, kUnit>(row, tile, unit * kUnit, end);
  }
  for (; tile * kTile < end; tile += kThreads / kUnits) {
    Real<Param> sum = 0;
#pragma unroll 1
    for (int lane = unit * kUnit; lane < (unit + 1) * kUnit; ++lane) {
      sum = sum + square_lanes<Param, 1>(row, tile, lane, end);
    }
    units[tile % kChunkTiles * kUnits] = sum;
  }
}

// A thread a column, in the place of the column's first chunk, which no other thread reads.
template <class Param>
__global__ void sum_tensor_columns(Step call) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (first >= call.chunks) return;
  const TableRow& row = call.rows[call.chunk_tensors[first]];
  if (first - row.first_chunk >= kSlopeColumns) return;
  double* const chunks = slope_chunks<Param>(call);
  const int64_t end = row.first_chunk + chunks_of(row.numel);
  double sum = 0.0;
  for (int64_t chunk = first; chunk < end; chunk += kSlopeColumns) sum = sum + chunks[chunk];
  chunks[first] = sum;
}

template <class Param>
__global__ void sum_tensors(Step call, double* squares) {
  const int64_t tensor = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (tensor >= call.tensors) return;
  const TableRow& row = call.rows[tensor];
  squares[tensor] = slope_sum(slope_chunks<Param>(call) + row.first_chunk, columns_of(chunks_of(row.numel)));
}

template <class Param>
const char* launch_of(const Step& call, double* squares) {
  const auto blocks = [](int64_t items) { return (items + kThreads - 1) / kThreads; };
  const char* error = nullptr;
  if (call.chunks != 0) {
    error = LAUNCH((square_units<Param>), call.chunks, kThreads, call.stream, call);
    if (!error) error = LAUNCH((sum_chunks<Param>), blocks(call.chunks), kThreads, call.stream, call);
    if (!error) error = LAUNCH((sum_tensor_columns<Param>), blocks(call.chunks), kThreads, call.stream, call);
  }
  return error ? error : LAUNCH((sum_tensors<Param>), blocks(call.tensors), kThreads, call.stream, call, squares);
}

__global__ void find_clip(const double* columns, Scalar grad_scale, double max_norm, double* norm, double* clip) {
  const Clip found = clip_of(slope_sum(columns, kSlopeColumns), grad_scale.read(), max_norm);
  *norm = found.norm;
  *clip = found.clip;
}

}  // namespace

const char* launch_squared_norms(const Step& call, double* squares) {
  if (call.tensors == 0) return nullptr;
  return with_dtype(call.param, [&]<class Param>() { return launch_of<Param>(call, squares); });
}

const char* launch_clip(double* squares, int64_t count, Scalar grad_scale, double max_norm, double* norm, double* clip,
                        void* stream) {
  const char* error = LAUNCH(sum_columns, 1, static_cast<int>(kSlopeColumns), stream, squares, count);
  return error ? error : LAUNCH(find_clip, 1, 1, stream, squares + count, grad_scale, max_norm, norm, clip);
}

}  // namespace lrt::cuda
