// How kernels are launched. The same .cu text is a CUDA kernel under nvcc and, with LRT_CUDA_ON_HOST, ordinary C++
// that runs every thread of every block in turn (tests/cuda_host), which is how it is checked without a GPU.
#pragma once

#include <cstdint>

namespace lrt::cuda {
constexpr int kWarp = 32;  // threads that run together
}

#if defined(LRT_CUDA_ON_HOST)
#include "cuda_on_host.h"
namespace lrt::cuda {
struct Loaded {
  template <class... Kernels>
  const char* load(Kernels...) {
    return nullptr;
  }
};
}  // namespace lrt::cuda
#else
#include <cuda_runtime_api.h>

#include <atomic>
// Launches and returns the error's text, or null. `stream` is a cudaStream_t.
#define LAUNCH(kernel, grid, block, stream, ...)                                                      \
  (kernel<<<static_cast<unsigned>(grid), block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__), \
   ::lrt::cuda::launch_error())
namespace lrt::cuda {
// The text of an error, or null. It is forgotten: no later launch shall be taken for the one that failed.
inline const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}
inline const char* launch_error() { return text_of(cudaGetLastError()); }
// Which devices have some kernels in their memory. Loading may fail, and must not once a step's first launch has run.
class Loaded {
 public:
  // Loads them on the current device, unless that is known to have them; null, or an error's text.
  template <class... Kernels>
  const char* load(Kernels... kernels) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const bool counted = error == cudaSuccess && device < kDevices;
    if (counted && on_[device]) return nullptr;
    cudaFuncAttributes attributes;
    ((error = error == cudaSuccess ? cudaFuncGetAttributes(&attributes, kernels) : error), ...);
    if (counted) on_[device] = error == cudaSuccess;
    return text_of(error);
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<bool> on_[kDevices] = {};
};
// What of(t) is for each thread t of a warp, all of which make one of these: each finds its own, and tells the others.
template <class Value, class Of>
struct WarpValues {
  Value own;
  __device__ __forceinline__ explicit WarpValues(const Of& of) : own(of(static_cast<int>(threadIdx.x % kWarp))) {}
  __device__ __forceinline__ Value of_thread(int thread) const { return __shfl_sync(0xffffffffu, own, thread); }
};
// The same of so many values, which of(t, values) is to fill.
template <class Value, int kCount, class Of>
struct WarpArrays {
  Value own[kCount];
  __device__ __forceinline__ explicit WarpArrays(const Of& of) { of(static_cast<int>(threadIdx.x % kWarp), own); }
  __device__ __forceinline__ Value of_thread(int thread, int i) const {
    return __shfl_sync(0xffffffffu, own[i], thread);
  }
};
// The byte that of(i) is for each of so many numbers, kMost at most, which the threads of a block find together: all of
// them make one of these, and a kernel one of each type.
template <int kMost, class Of>
struct BlockBytes {
  __device__ __forceinline__ BlockBytes(int count, const Of& of) {
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(shared());
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) bytes[i] = of(i);
    __syncthreads();
  }
  __device__ __forceinline__ uint8_t at(int i) const { return reinterpret_cast<const uint8_t*>(shared())[i]; }
  // Those from a multiple of eight on, the first in the lowest bits.
  __device__ __forceinline__ uint64_t eight_at(int i) const { return shared()[i / 8]; }

 private:
  static __device__ __forceinline__ uint64_t* shared() {
    __shared__ uint64_t words[kMost / 8];
    return words;
  }
};
}  // namespace lrt::cuda
#endif

#define LRT_DEVICE static __device__ __forceinline__
