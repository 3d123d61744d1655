// Whether a tensor is what a row of the record says. Its fields are read where torch has them (HostLayout), at once;
// what these do not tell, or where they were not found, is asked of torch, by some ten calls.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/numeric.h"
#include "host_step.h"
#include "host_tensors.h"

namespace lrt {

constexpr int64_t kInlineDims = 5;  // so many sizes, and strides, are in the implementation itself

inline bool are_fields_known(const HostLayout& layout) { return layout.sizes >= 0; }

inline bool is_same_object(const HostLayout& layout, const StepTensor& row) {
  return word(row.of.object, layout.type) == row.type &&
         word(row.of.object, layout.implementation) == row.implementation;
}

// The object of an implementation, or 0. By it a tensor in a wrapper is told, whose object need not be looked at then.
inline uint64_t object_of(const HostLayout& layout, uint64_t implementation) {
  return word(implementation, layout.object) & ~uint64_t{7};  // without who owns it
}

// The address of the row's tensor by the fields of an implementation, which says the same of itself as the row does;
// false: it may be another, or not all of it lies in its storage.
inline bool is_like_at_once(const HostLayout& layout, StepTensor& row, uint64_t implementation, uint64_t& address) {
  if (!are_fields_known(layout) || row.dims > kInlineDims) return false;
  if (word(implementation, layout.keys) != row.keys || word(implementation, layout.kind) != row.kind) return false;
  const auto* const sizes = reinterpret_cast<const int64_t*>(implementation + layout.sizes);
  if (sizes[-1] != row.dims) return false;
  const int64_t *const strides = sizes + kInlineDims, *const own = layout_of(row);
  for (int64_t d = 0; d < row.dims; ++d) {
    if (sizes[d] != own[d] || strides[d] != own[row.dims + d]) return false;
  }
  address = 0;
  if (row.extent == 0) return true;
  const uint64_t storage = word(implementation, layout.storage), data = word(storage, layout.data);
  const auto offset = static_cast<int64_t>(word(implementation, layout.offset));
  const auto bytes = static_cast<int64_t>(word(storage, layout.bytes));
  address = data + static_cast<uint64_t>(offset * row.itemsize);
  return data != 0 && (offset + row.extent) * row.itemsize <= bytes;
}

// The same as torch's functions tell it: dispatch keys (device, layout, what is lazy), dtype, sizes and strides.
inline bool is_like_by_calls(const HostLayout& layout, StepTensor& row, uint64_t handle, uint64_t& address) {
  if (word(word(handle, 0), layout.keys) != row.keys) return false;
  int32_t dtype, device;
  Shape shape;
  if (!told(aoti_torch_get_dtype, handle, &dtype) || dtype != row.dtype) return false;
  if (!told(aoti_torch_get_device_index, handle, &device) || device != row.device) return false;
  if (!shape_of(handle, shape) || shape.dims != row.dims) return false;
  const size_t bytes = row.dims * sizeof(int64_t);
  if (std::memcmp(shape.sizes, layout_of(row), bytes) != 0) return false;
  if (std::memcmp(shape.strides, layout_of(row) + row.dims, bytes) != 0) return false;
  if (!address_of(handle, address)) return false;
  int64_t offset, size;
  return row.extent == 0 ||
         (address != 0 && told(aoti_torch_get_storage_offset, handle, &offset) &&
          told(aoti_torch_get_storage_size, handle, &size) && (offset + row.extent) * row.itemsize <= size);
}

// Has the row say what is read at once of the tensor that it is of.
inline void remember(const HostLayout& layout, StepTensor& row, uint64_t implementation) {
  row.implementation = implementation;
  row.storage = word(implementation, layout.storage);
  if (!are_fields_known(layout)) return;
  row.kind = word(implementation, layout.kind);
  if (!is_gradient(row) && row.storage != 0) row.deleter = word(row.storage, layout.deleter);
}

// Whether a gradient, wherever it lies, can take the place of the row's; where it lies is told.
inline bool is_like(const HostLayout& layout, StepTensor& row, uint64_t handle) {
  const uint64_t implementation = word(handle, 0);
  const bool is_like =
      is_like_at_once(layout, row, implementation, row.moved_to) || is_like_by_calls(layout, row, handle, row.moved_to);
  if (is_like) remember(layout, row, implementation);
  return is_like;
}

// Whether the row's tensor is what and where it was. Memory that it shares until one of them is written to, which has
// another deleter, becomes its own where torch is asked for its address, and then is another.
inline bool has_stayed(const HostLayout& layout, StepTensor& row) {
  uint64_t address = 0;
  const bool is_same =
      is_in_wrapper(row) ? object_of(layout, row.implementation) == row.of.object : is_same_object(layout, row);
  if (!is_same) return false;
  const bool at_once =
      is_like_at_once(layout, row, row.implementation, address) &&
      (row.extent == 0 || word(word(row.implementation, layout.storage), layout.deleter) == row.deleter);
  if (!at_once) {
    if (!is_like_by_calls(layout, row, row.handle, address)) return false;
    remember(layout, row, row.implementation);
  }
  if (address != row.address) return false;
  return row.of.role != StepTensorRole::kCount || is_step_count(*reinterpret_cast<const double*>(address));
}

// Fills a row from the tensor whose handle it has; whether torch tells all of it.
inline bool read_tensor(const HostLayout& layout, StepTensor& row) {
  Shape shape;
  int32_t device;
  row.keys = word(row.implementation, layout.keys);
  if (!told(aoti_torch_get_dtype, row.handle, &row.dtype) || !told(aoti_torch_get_device_index, row.handle, &device) ||
      !shape_of(row.handle, shape)) {
    return false;
  }
  row.device = static_cast<int16_t>(device);
  row.itemsize = static_cast<int16_t>(aoti_torch_dtype_element_size(row.dtype));
  row.dims = shape.dims;
  row.extent = 1;
  for (int64_t d = 0; d < shape.dims; ++d) row.extent += (shape.sizes[d] - 1) * shape.strides[d];
  if (std::find(shape.sizes, shape.sizes + shape.dims, 0) != shape.sizes + shape.dims) row.extent = 0;
  std::copy_n(shape.sizes, shape.dims, layout_of(row));
  std::copy_n(shape.strides, shape.dims, layout_of(row) + shape.dims);
  if (!address_of(row.handle, row.address)) return false;
  remember(layout, row, row.implementation);
  return true;
}

}  // namespace lrt
