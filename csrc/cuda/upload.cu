// See upload.h.
#include <algorithm>
#include <cstring>

#include "cuda/launch.h"
#include "cuda/upload.h"

namespace lrt::cuda {
namespace {

constexpr int kWords = 480;  // of 8 bytes; with the rest below the 4 KB that arguments may take
struct Words {
  int64_t word[kWords];
};

__global__ void write_words(int64_t* target, Words words, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) target[i] = words.word[i];
}

}  // namespace

#if defined(LRT_CUDA_ON_HOST)
const char* use_device(int) { return nullptr; }
int toolkit_version() { return 0; }
#else
int toolkit_version() { return CUDART_VERSION; }

const char* use_device(int device) {
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#endif

const char* upload(int64_t* target, const int64_t* words, int64_t count, void* stream) {
  for (int64_t first = 0; first < count; first += kWords) {
    const int part = static_cast<int>(std::min<int64_t>(kWords, count - first));
    Words arguments = {};
    memcpy(arguments.word, words + first, part * sizeof(int64_t));
    const char* error = LAUNCH(write_words, 1, 128, stream, target + first, arguments, part);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace lrt::cuda
