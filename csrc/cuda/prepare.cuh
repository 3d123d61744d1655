// The first launch of a step: the counts of steps advance, and what the kernels need is rounded once, a thread a
// tensor.
#pragma once

#include "core/record.h"
#include "cuda/chunk.cuh"

namespace lrt::cuda {

template <class Rule, class Hyper, class Real>
__global__ void prepare_kernel(Step call, Hyper hyper) {
  static_assert(sizeof(Shared<Real>) <= kPreparedBytes && sizeof(Own<Rule>) <= kPreparedBytes);
  Prepared* prepared = static_cast<Prepared*>(call.prepared);
  const bool skip = call.arguments.skips();
  const int64_t tensor = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (tensor == 0) {
    const uint32_t threshold = keep_threshold(call.arguments.keep_prob.read());
    const bool masked = is_masked(threshold);
    // Without a mask every word is 0, and 0 < 1 keeps all.
    const uint32_t word_threshold = masked ? threshold << 16 : threshold == 0 ? 0u : 1u;
    const Shared<Real> shared = {UpdateScalars<Real>(call.arguments.scalars()), word_threshold, masked, skip};
    *reinterpret_cast<Shared<Real>*>(prepared) = shared;
  }
  if (tensor >= call.tensors || skip) return;
  double* step = reinterpret_cast<double*>(call.rows[tensor].step);
  const bool counted = is_step_count(*step);
  const double next = counted ? *step + 1 : 1;
  if (counted) *step = next;
  double scalar = 0;
  if constexpr (kHasScalar<Hyper>) {
    double* const own = reinterpret_cast<double*>(call.rows[tensor].scalar);
    scalar = hyper.advance(next, *own);
    if (counted) *own = scalar;
  }
  *reinterpret_cast<Own<Rule>*>(prepared + 1 + tensor) = {rule_at<Rule>(hyper, next, scalar),
                                                          static_cast<uint32_t>(static_cast<uint64_t>(next)), counted};
}

template <class Variant, class Real>
const char* launch_prepare(const Step& call, const typename Variant::Hyper& hyper) {
  const int64_t blocks = blocks_of_threads(call.tensors);
  return LAUNCH((prepare_kernel<typename Variant::template Rule<Real>, typename Variant::Hyper, Real>), blocks,
                kListThreads, call.stream, call, hyper);
}

}  // namespace lrt::cuda
