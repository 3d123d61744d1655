// What torch's C functions say of a tensor that is known by where its implementation is named.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

namespace lrt {

inline uint64_t word(uint64_t object, int64_t offset) { return *reinterpret_cast<const uint64_t*>(object + offset); }

// What torch's C functions take for a tensor: the address of the word that names its implementation.
inline AtenTensorHandle handle_of(uint64_t address) { return reinterpret_cast<AtenTensorHandle>(address); }

template <class T>
bool told(AOTITorchError (*function)(AtenTensorHandle, T*), uint64_t handle, T* answer) {
  return function(handle_of(handle), answer) == AOTI_TORCH_SUCCESS;
}

inline bool is_defined(uint64_t handle) {
  bool defined = true;
  return !told(aoti_torch_is_defined, handle, &defined) || defined;
}

struct Shape {
  int64_t dims;
  int64_t *sizes, *strides;
};

inline bool shape_of(uint64_t handle, Shape& shape) {
  return told(aoti_torch_get_dim, handle, &shape.dims) && told(aoti_torch_get_sizes, handle, &shape.sizes) &&
         told(aoti_torch_get_strides, handle, &shape.strides);
}

inline bool address_of(uint64_t handle, uint64_t& address) {
  void* data = nullptr;
  if (!told(aoti_torch_get_data_ptr, handle, &data)) return false;
  address = reinterpret_cast<uint64_t>(data);
  return true;
}

}  // namespace lrt
