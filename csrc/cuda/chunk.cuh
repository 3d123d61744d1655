// What the kernels that step a chunk are made of: its constants, its accesses, the gradients it sees.
#pragma once

#include "cuda/slices.cuh"

namespace lrt::cuda {

constexpr int kThreads = 128;
constexpr int kAccess = 16;  // bytes of one access, and of a unit of lanes (core/slope.h)

// What all tensors of a call share, and what each has of its own, in the compute type.
template <class Real>
struct Shared {
  UpdateScalars<Real> scalars;
  uint32_t word_threshold;  // an element is kept iff its 16 bits, in the upper half of a word, are below
  bool masked, skip;
};
template <class Rule>
struct Own {
  Rule rule;
  uint32_t step;
  bool counted;  // the count of steps was one; else the tensor is left alone
};
struct alignas(16) Prepared {
  char bytes[kPreparedBytes];
};

// kCount elements in as few accesses as their size allows.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < kAccess ? sizeof(T) * kCount : kAccess) Vector {
  T value[kCount];
};

template <class T, int kCount>
LRT_DEVICE Vector<T, kCount>& vector_at(int64_t base, int64_t element) {
  T* const address = reinterpret_cast<T*>(base) + element;
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));  // an integer does not say so, and sm_100 would use generic accesses
#endif
  return *reinterpret_cast<Vector<T, kCount>*>(address);
}

// What the threads of a block share.
template <class Rule, class Real>
struct Chunk {
  const Rule& rule;
  const Shared<Real>& shared;
  const TableRow& row;
  KeepStream stream;
  int64_t end;  // of its elements
  SliceMeans<Real> means;
};

// The gradients of kCount elements that the rule sees. kCentralize: there may be means, which is looked up.
template <class Param, int kCount, bool kCentralize, class Rule>
LRT_DEVICE Vector<Param, kCount> seen_grads(const Chunk<Rule, Real<Param>>& chunk, int64_t begin,
                                            Vector<Param, kCount> grads) {
  if constexpr (kCentralize) {
    if (chunk.means.first) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) grads.value[e] = centralized(grads.value[e], chunk.means.of(begin + e));
    }
  }
  return grads;
}

}  // namespace lrt::cuda
