// See upload.h.
#include <algorithm>
#include <cstring>

#include "cuda/launch.h"
#include "cuda/upload.h"

namespace lrt::cuda {
namespace {

// Of 8 bytes; with the rest below the 4 KB that arguments may always take, and the 32,764 bytes that they may take on
// compute capability 7.0 and later from CUDA 12.1 on, of the toolkit and of the driver.
constexpr int kWords = 480, kManyWords = 4000;
constexpr int kManyVersion = 12010, kManyArch = 700;

template <int kCount>
struct Words {
  int64_t word[kCount];
};

template <int kCount>
__global__ void write_words(int64_t* target, int64_t pitch, const __grid_constant__ Words<kCount> words, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) target[i * pitch] = words.word[i];
}

#if defined(LRT_CUDA_ON_HOST)
constexpr bool kCompiledForMany = true;
bool driver_takes_many() { return true; }
const char* load_on_device(bool) { return nullptr; }
#else
constexpr int kArchs[] = {__CUDA_ARCH_LIST__};  // in ascending order
constexpr bool kCompiledForMany = CUDART_VERSION >= kManyVersion && kArchs[0] >= kManyArch;
bool driver_takes_many() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess && version >= kManyVersion;
}

// Loads the kernels on the current device: a capture may need either, and must not be the first to load it.
const char* load_on_device(bool many) {
  static Loaded few, all;
  if constexpr (kCompiledForMany) {
    if (many) return all.load(write_words<kWords>, write_words<kManyWords>);
  }
  return few.load(write_words<kWords>);
}
#endif

template <int kCount>
const char* upload_by(int64_t* target, int64_t pitch, const int64_t* words, int64_t count, void* stream) {
  constexpr int kThreads = 128;
  static thread_local Words<kCount> arguments;  // not on the stack, which may be small
  for (int64_t first = 0; first < count; first += kCount) {
    const int part = static_cast<int>(std::min<int64_t>(kCount, count - first));
    memcpy(arguments.word, words + first, part * sizeof(int64_t));
    const char* error = LAUNCH(write_words<kCount>, (part + kThreads - 1) / kThreads, kThreads, stream,
                               target + first * pitch, pitch, arguments, part);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

#if defined(LRT_CUDA_ON_HOST)
const char* use_device(int) { return nullptr; }
int toolkit_version() { return 0; }
#else
int toolkit_version() { return CUDART_VERSION; }

const char* use_device(int device) { return text_of(cudaSetDevice(device)); }
#endif

// The words of a table are many; the fewer of a column travel as arguments of their size.
const char* upload(int64_t* target, int64_t pitch, const int64_t* words, int64_t count, void* stream) {
  static const bool many = kCompiledForMany && driver_takes_many();
  constexpr int kAtMost = kCompiledForMany ? kManyWords : kWords;
  if (const char* error = load_on_device(many)) return error;
  return many && count > kWords ? upload_by<kAtMost>(target, pitch, words, count, stream)
                                : upload_by<kWords>(target, pitch, words, count, stream);
}

}  // namespace lrt::cuda
