// What nvcc's host code calls of the CUDA runtime, without a device: launches go to whoever has asked for them.
// Linked in the place of libcudart with the very objects that the library is linked of, so that their launchers run.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace lrt::cuda {
int64_t launches = 0;
}

namespace {

// The kernel's name, blocks, threads of each, the addresses of its arguments, and bytes of dynamic shared memory.
// Returns an error's text, which lives until the next launch, or null.
using Launch = const char* (*)(const char*, unsigned, unsigned, void**, size_t);

struct Dim3 {
  unsigned x, y, z;
};
struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};
enum Error { kSuccess = 0, kFailure = 1 };

Launch launch = nullptr;
thread_local Configuration configuration;
thread_local std::string error;

// By the address of its stub. Registered before main, so not before its own first use.
std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void set_launch(Launch given) { launch = given; }

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, Dim3*, Dim3*, int*) {
  kernels()[stub] = name;
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

Error __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return kSuccess;
}

Error __cudaGetKernel(const void** kernel, const void* stub) {
  *kernel = stub;
  return kSuccess;
}

Error __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  ++lrt::cuda::launches;
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) {
    error = "a kernel that is not registered";
  } else if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1) {
    error = "a launch of several dimensions";
  } else if (const char* said = launch(found->second.c_str(), grid.x, block.x, arguments, shared)) {
    error = said;
  }
  return error.empty() ? kSuccess : kFailure;
}

Error cudaGetLastError() { return error.empty() ? kSuccess : kFailure; }

const char* cudaGetErrorString(Error) {
  static thread_local std::string said;
  said.swap(error);
  error.clear();
  return said.c_str();
}

Error cudaSetDevice(int) { return kSuccess; }
Error cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
Error cudaFuncGetAttributes(void*, const void* kernel) {
  if (kernels().count(kernel)) return kSuccess;
  error = "a kernel that is not registered";
  return kFailure;
}
Error cudaDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

}  // extern "C"
