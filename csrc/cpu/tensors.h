// What the CPU's ops read of a tensor by the stable ABI.
#pragma once

#include <optional>

#include "call.h"
#include "core/dtype.h"

namespace lrt::cpu {

// Codes of the stable ABI, read once: Tensor::scalar_type() makes up to a dozen calls each time.
inline const int32_t kFloatCode = aoti_torch_dtype_float32(), kDoubleCode = aoti_torch_dtype_float64(),
                     kBFloat16Code = aoti_torch_dtype_bfloat16(), kHalfCode = aoti_torch_dtype_float16(),
                     kCpuCode = aoti_torch_device_type_cpu();

inline std::optional<Dtype> dtype_of(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  if (code == kFloatCode) return Dtype::kFloat;
  if (code == kDoubleCode) return Dtype::kDouble;
  if (code == kBFloat16Code) return Dtype::kBFloat16;
  if (code == kHalfCode) return Dtype::kHalf;
  return std::nullopt;
}

inline bool on_cpu(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &code));
  return code == kCpuCode;
}

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

inline double read_scalar(const Tensor& tensor, const char* name) {
  const std::optional<Dtype> dtype = dtype_of(tensor);
  require(on_cpu(tensor) && tensor.numel() == 1 && (dtype == Dtype::kFloat || dtype == Dtype::kDouble), "Invalid ",
          name, ": must be one float32 or float64 on the CPU");
  const void* data = tensor.const_data_ptr();
  return dtype == Dtype::kFloat ? *static_cast<const float*>(data) : *static_cast<const double*>(data);
}

}  // namespace lrt::cpu
