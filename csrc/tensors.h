// What the ops read of a tensor by the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "core/arguments.h"
#include "core/dtype.h"
#include "require.h"

namespace lrt {

using torch::stable::Tensor;

// Codes of the stable ABI, read once: Tensor::scalar_type() makes up to a dozen calls each time.
inline const int32_t kFloatCode = aoti_torch_dtype_float32(), kDoubleCode = aoti_torch_dtype_float64(),
                     kBFloat16Code = aoti_torch_dtype_bfloat16(), kHalfCode = aoti_torch_dtype_float16(),
                     kLongCode = aoti_torch_dtype_int64(), kCpuCode = aoti_torch_device_type_cpu();

inline int32_t dtype_code(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

inline std::optional<Dtype> dtype_of(const Tensor& tensor) {
  const int32_t code = dtype_code(tensor);
  if (code == kFloatCode) return Dtype::kFloat;
  if (code == kDoubleCode) return Dtype::kDouble;
  if (code == kBFloat16Code) return Dtype::kBFloat16;
  if (code == kHalfCode) return Dtype::kHalf;
  return std::nullopt;
}

inline int32_t device_code(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &code));
  return code;
}

inline bool on_cpu(const Tensor& tensor) { return device_code(tensor) == kCpuCode; }

inline bool same_device(const Tensor& a, const Tensor& b) {
  return device_code(a) == device_code(b) && a.get_device_index() == b.get_device_index();
}

inline int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(tensor.element_size()); }

// Raises unless the storage holds every element: it may have been resized since, and a tensor without memory may have
// an address.
inline void require_memory(const Tensor& tensor, const char* name, size_t i) {
  if (tensor.numel() == 0) return;
  int64_t bytes, last;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor.get(), &last));
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const int64_t needed = (last + 1) * static_cast<int64_t>(tensor.element_size());
  require(needed <= bytes && tensor.const_data_ptr(), "Invalid ", name, "[", i, "]: its storage has ", bytes,
          " bytes, and it needs ", needed);
}

inline Scalar scalar_at(const Tensor& tensor, const char* name) {
  const std::optional<Dtype> dtype = dtype_of(tensor);
  require(tensor.numel() == 1 && (dtype == Dtype::kFloat || dtype == Dtype::kDouble), "Invalid ", name,
          ": must be one float32 or float64");
  return {.address = tensor.const_data_ptr(), .is_double = dtype == Dtype::kDouble};
}

inline double read_scalar(const Tensor& tensor, const char* name) {
  require(on_cpu(tensor), "Invalid ", name, ": must be on the CPU");
  return scalar_at(tensor, name).read();
}

// A number, or the tensor in its place: one on the CPU is read at once, one beside `operand` when the kernels run.
inline Scalar scalar_of(double value, const std::optional<Tensor>& tensor, const char* name, const Tensor* operand) {
  if (!tensor) return {.value = value};
  const Scalar scalar = scalar_at(*tensor, name);
  if (on_cpu(*tensor)) return {.value = scalar.read()};
  require(operand && same_device(*tensor, *operand), "Invalid ", name,
          ": must be on the CPU or on the parameters' device");
  return scalar;
}

}  // namespace lrt
