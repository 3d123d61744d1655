// Gradient centralization (core/slice_mean.h): where the means of all slices of a list are, and what they mean for a
// chunk.
#pragma once

#include "core/slice_mean.h"
#include "cuda/runs.cuh"
#include "cuda/step.h"

namespace lrt::cuda {

template <class Param>
LRT_DEVICE Real<Param>* partial_sums(const Step& call) {
  return static_cast<Real<Param>*>(call.slice_scratch);
}

template <class Param>
LRT_DEVICE Real<Param>* slice_means(const Step& call) {
  return partial_sums<Param>(call) + call.partials;
}

// The means that the elements of one chunk lose.
template <class Real>
struct SliceMeans {
  const Real* first = nullptr;  // null: there is nothing to lose
  ChunkRuns slices;

  LRT_HD SliceMeans(const Real* means, const TableRow& row, int64_t chunk_begin) {
    if (row.slice_length == 0) return;
    slices = ChunkRuns(row.slice_length, chunk_begin);
    first = means + row.first_slice + slices.first;
  }
  LRT_HD Real of(int64_t element) const { return first[slices.of(element)]; }
};

}  // namespace lrt::cuda
