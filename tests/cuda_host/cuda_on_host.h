// CUDA's words as ordinary C++: a launch runs every thread of every block, one after another.
// Enough for kernels whose threads do not talk to each other (no barrier, shared memory or atomic; what they tell each
// other goes through WarpValues, WarpArrays or BlockBytes); code that uses one of those does not compile here.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct LaunchIndex {
  unsigned x = 0;
};
inline thread_local LaunchIndex threadIdx, blockIdx, blockDim;

namespace lrt::cuda {

inline int64_t launches = 0;  // so far

template <class Kernel, class... Arguments>
const char* launch_on_host(Kernel kernel, int64_t grid, int block, Arguments... arguments) {
  if (grid <= 0 || grid > 0x7fffffff) return "invalid configuration argument";  // as a device would say
  ++launches;
  blockDim.x = static_cast<unsigned>(block);
  for (int64_t b = 0; b < grid; ++b) {
    blockIdx.x = static_cast<unsigned>(b);
    for (int t = 0; t < block; ++t) {
      threadIdx.x = static_cast<unsigned>(t);
      kernel(arguments...);
    }
  }
  return nullptr;
}

// Of cuda/launch.h: here each thread finds what the others would tell it.
template <class Value, class Of>
struct WarpValues {
  const Of& of;
  explicit WarpValues(const Of& of) : of(of) {}
  Value of_thread(int thread) const { return of(thread); }
};
template <class Value, int kCount, class Of>
struct WarpArrays {
  const Of& of;
  explicit WarpArrays(const Of& of) : of(of) {}
  Value of_thread(int thread, int i) const {
    Value values[kCount];
    of(thread, values);
    return values[i];
  }
};
template <int kMost, class Of>
struct BlockBytes {
  int count;
  Of of;
  BlockBytes(int count, const Of& of) : count(count), of(of) {
    if (count > kMost) throw std::length_error("more bytes than a block has room for");
  }
  uint8_t at(int i) const {
    if (i < 0 || i >= count) throw std::out_of_range("a byte that no thread finds");
    return of(i);
  }
  uint64_t eight_at(int i) const {
    if (i % 8 != 0) throw std::invalid_argument("bytes that are not read at once");
    uint64_t bytes = 0;
    for (int k = 7; k >= 0; --k) bytes = bytes << 8 | at(i + k);
    return bytes;
  }
};

}  // namespace lrt::cuda

#define LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), ::lrt::cuda::launch_on_host(kernel, grid, block, __VA_ARGS__))
