// Squared norms of gradients (core/squares.h): the units of a slope, here of squares, then chunks, columns and tensors.
#include "core/squares.h"
#include "cuda/chunk.cuh"
#include "cuda/slope.cuh"

namespace lrt::cuda {
namespace {

// kCount neighbouring lanes of a whole tile, all eight rows.
template <class Param, int kCount>
LRT_DEVICE Real<Param> square_lanes(const TableRow& row, int64_t begin) {
  Vector<Param, kCount> grads[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) grads[r] = AnyAccess::load<Param, kCount>(row.grad, begin + r * kLanes);
  Real<Param> lanes[kCount] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) lanes[e] = lanes[e] + square_term(to_real(grads[r].value[e]));
  }
  return slope_unit<kCount>(lanes);
}

// One lane of a tile, which may end with the chunk: what is not there adds nothing.
template <class Param>
LRT_DEVICE Real<Param> square_lane(const TableRow& row, int64_t begin, int64_t end) {
  Real<Param> grads[kRows], sum = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t element = begin + r * kLanes;
    grads[r] = element < end ? to_real(load_piece<Param, 1>(row.grad, element).value[0]) : 0;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sum = sum + square_term(grads[r]);
  return sum;
}

template <class Param>
__global__ void __launch_bounds__(kListThreads) square_units(Step call) {
  constexpr int kUnit = kSlopeLanes<Param>, kUnits = kTileUnits<Param>;
  const TableRow row = call.rows[call.chunk_tensors[blockIdx.x]];
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - row.first_chunk) * kChunk;
  const int64_t end = begin + kChunk < row.numel ? begin + kChunk : row.numel;
  const int unit = threadIdx.x % kUnits;
  Real<Param>* const units = slope_units<Param>(call) + static_cast<int64_t>(blockIdx.x) * kChunkTiles * kUnits + unit;
  int64_t tile = begin / kTile + threadIdx.x / kUnits;
  for (; tile < end / kTile; tile += kListThreads / kUnits) {
    units[tile % kChunkTiles * kUnits] = square_lanes<Param, kUnit>(row, tile * kTile + unit * kUnit);
  }
  if (tile * kTile >= end) return;
  Real<Param> sum = 0;
#pragma unroll
  for (int e = 0; e < kUnit; ++e) sum = sum + square_lane<Param>(row, tile * kTile + unit * kUnit + e, end);
  units[tile % kChunkTiles * kUnits] = sum;
}

// A thread a column, in the place of the column's first chunk, which no other thread reads.
template <class Param>
__global__ void sum_tensor_columns(Step call) {
  const int64_t first = launch_thread();
  if (first >= call.chunks) return;
  const TableRow& row = call.rows[call.chunk_tensors[first]];
  if (first - row.first_chunk >= kSlopeColumns) return;
  double* const chunks = slope_chunks<Param>(call);
  const int64_t left = row.first_chunk + chunks_of(row.numel) - first;
  chunks[first] = slope_sum(chunks + first, (left + kSlopeColumns - 1) / kSlopeColumns, kSlopeColumns);
}

// A warp a tensor.
template <class Param>
__global__ void sum_tensors(Step call, double* squares) {
  const int64_t tensor = launch_warp();
  if (tensor >= call.tensors) return;
  const TableRow& row = call.rows[tensor];
  const double sum = warp_sum(slope_chunks<Param>(call) + row.first_chunk, columns_of(chunks_of(row.numel)));
  if (leads_warp()) squares[tensor] = sum;
}

template <class Param>
const char* launch_of(const Step& call, double* squares) {
  const auto launch = [&](auto kernel, int64_t blocks, auto... more) {
    return LAUNCH(kernel, blocks, kListThreads, call.stream, call, more...);
  };
  const char* error = nullptr;
  if (call.chunks != 0) {
    error = launch(square_units<Param>, call.chunks);
    if (!error) error = launch(sum_chunks<Param>, blocks_of_warps(call.chunks));
    if (!error) error = launch(sum_tensor_columns<Param>, blocks_of_threads(call.chunks));
  }
  return error ? error : launch(sum_tensors<Param>, blocks_of_warps(call.tensors), squares);
}

__global__ void find_clip(double* squares, int64_t count, bool columns, Scalar grad_scale, double max_norm,
                          double* norm, double* clip) {
  if (columns) return sum_column(squares, count);
  const Clip found = clip_of(columns_sum(squares, count), grad_scale.read(), max_norm);
  if (!leads_warp()) return;
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
  const auto launch = [&](bool columns) {
    const int threads = columns ? static_cast<int>(kSlopeColumns) : kWarp;
    return LAUNCH(find_clip, 1, threads, stream, squares, count, columns, grad_scale, max_norm, norm, clip);
  };
  const char* error = count > kSlopeColumns ? launch(true) : nullptr;
  return error ? error : launch(false);
}

}  // namespace lrt::cuda
