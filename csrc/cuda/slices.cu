// The means of all slices of a list (core/slice_mean.h), partials first, of whatever rule. No barriers: each stage is a
// launch of its own, and a thread owns what it sums.
#include "cuda/launch.h"
#include "cuda/slices.cuh"

namespace lrt::cuda {
namespace {

// The row of the table that the list's slice or partial number `item` belongs to: the last that begins with it or
// before.
template <int64_t TableRow::* kFirst>
LRT_DEVICE const TableRow& row_of(const Step& call, int64_t item) {
  int64_t low = 0;
  for (int64_t high = call.tensors; high - low > 1;) {
    const int64_t middle = low + (high - low) / 2;
    (call.rows[middle].*kFirst <= item ? low : high) = middle;
  }
  return call.rows[low];
}

template <class Param>
__global__ void sum_partials(Step call) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= call.partials) return;
  const TableRow& row = row_of<&TableRow::first_partial>(call, item);
  const int64_t length = row.slice_length, partials = slice_partials(length), of_row = item - row.first_partial;
  const Param* grads = reinterpret_cast<const Param*>(row.grad) + of_row / partials * length;
  constexpr int kBatch = 16;  // elements that are waited for at the same time; those that are not there add nothing
  Real<Param> sum = 0;
  for (int64_t first = of_row % partials; first < length; first += kBatch * partials) {
    Real<Param> batch[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int64_t i = first + k * partials;
      batch[k] = i < length ? to_real(grads[i]) : 0;
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) sum = sum + batch[k];
  }
  partial_sums<Param>(call)[item] = sum;
}

template <class Param>
__global__ void find_means(Step call) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= call.slices) return;
  const TableRow& row = row_of<&TableRow::first_slice>(call, item);
  const int64_t first_partial = row.first_partial + (item - row.first_slice) * slice_partials(row.slice_length);
  slice_means<Param>(call)[item] = slice_mean(partial_sums<Param>(call) + first_partial, row.slice_length);
}

}  // namespace

const char* launch_means(const Step& call) {
  return with_dtype(call.param, [&]<class Param>() {
    const char* error =
        LAUNCH((sum_partials<Param>), blocks_of_threads(call.partials), kListThreads, call.stream, call);
    return error ? error : LAUNCH((find_means<Param>), blocks_of_threads(call.slices), kListThreads, call.stream, call);
  });
}

}  // namespace lrt::cuda
