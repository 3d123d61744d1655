// See entry.h. Compiled by the host compiler: torch's headers and CUDA's do not meet.
#include "cuda/entry.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "cuda/upload.h"

namespace lrt::cuda {
namespace {

const int32_t kFloatCode = aoti_torch_dtype_float32(), kDoubleCode = aoti_torch_dtype_float64(),
              kCpuCode = aoti_torch_device_type_cpu(), kCudaCode = aoti_torch_device_type_cuda();

int32_t dtype_code(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

int32_t device_code(const Tensor& tensor) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &code));
  return code;
}

int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(tensor.element_size()); }

// torch's current stream of the device. Looked up in the loaded libtorch_cuda: this library is linked without it.
void* current_stream(int32_t device) {
  using Lookup = AOTITorchError (*)(int32_t, void**);
  static const Lookup lookup = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Lookup>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  require(lookup, "lrtricks_fused: libtorch_cuda.so is not loaded, or offers no current stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(lookup(device, &stream));
  return stream;
}

void check(const char* error) { require(!error, "lrtricks_fused, built for ", LRT_CUDA_ARCHS, ": ", error); }

DeviceNumber device_number(double value, const std::optional<Tensor>& tensor, const char* name, int32_t device) {
  if (!tensor) return {value, nullptr, false};
  const int32_t code = dtype_code(*tensor);
  require(tensor->numel() == 1 && (code == kFloatCode || code == kDoubleCode), "Invalid ", name,
          ": must be one float32 or float64");
  const void* data = tensor->const_data_ptr();
  if (device_code(*tensor) == kCpuCode) {
    return {code == kDoubleCode ? *static_cast<const double*>(data) : *static_cast<const float*>(data), nullptr, false};
  }
  require(device_code(*tensor) == kCudaCode && tensor->get_device_index() == device, "Invalid ", name,
          ": must be on the CPU or on the parameters' device");
  return {0.0, data, code == kDoubleCode};
}

bool on_device(const std::optional<Tensor>& tensor, int32_t device) {
  return tensor && device_code(*tensor) == kCudaCode && tensor->get_device_index() == device && tensor->is_contiguous();
}

void check_slices(const ListCall& call, Dtype param_dtype, int32_t device) {
  const int64_t bytes = slice_bytes(call.slices, call.lanes, param_dtype);
  require(on_device(call.slice_scratch, device) && bytes_of(*call.slice_scratch) >= bytes,
          "Invalid slice_scratch: must be ", bytes, " bytes on the table's device");
}

void check_slope(const ListCall& call, Dtype param_dtype, int32_t device) {
  require(on_device(call.slope, device) && call.slope->numel() == 1 && dtype_code(*call.slope) == kDoubleCode,
          "Invalid slope: must be one float64 on the table's device");
  const int64_t bytes = slope_bytes(call.chunk_tensors->numel(), param_dtype);
  require(on_device(call.slope_scratch, device) && bytes_of(*call.slope_scratch) >= bytes,
          "Invalid slope_scratch: must be ", bytes, " bytes on the table's device");
}

}  // namespace

void run(const ListCall& call, const std::function<const char*(const Step&)>& launch) {
  require(call.table.has_value(), "lrtricks_fused: on CUDA a step takes a table of addresses");
  const Tensor& table = *call.table;
  const int32_t device = table.get_device_index();
  const TableRow* rows = table_rows(table);
  require(on_device(call.chunk_tensors, device) && on_device(call.prepared, device),
          "Invalid chunk_tensors, prepared: must be on the table's device");
  const Tensor &chunks = *call.chunk_tensors, &prepared = *call.prepared;
  require(chunks.element_size() == 4, "Invalid chunk_tensors: must be int32");
  require(bytes_of(prepared) >= prepared_bytes(table.size(0)), "Invalid prepared: must be ",
          prepared_bytes(table.size(0)), " bytes");
  const auto param_dtype = static_cast<Dtype>(call.param_dtype);
  if (call.slices) check_slices(call, param_dtype, device);
  if (call.slope) check_slope(call, param_dtype, device);
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(use_device(device));
  const Step step = {
      .rows = rows,
      .chunk_tensors = static_cast<const int32_t*>(chunks.const_data_ptr()),
      .prepared = prepared.mutable_data_ptr(),
      .tensors = table.size(0),
      .chunks = chunks.numel(),
      .lr = device_number(call.lr.value, call.lr.tensor, "lr", device),
      .keep_prob = device_number(call.keep_prob.value, call.keep_prob.tensor, "keep_prob", device),
      .grad_weight = device_number(call.grad_weight.value, call.grad_weight.tensor, "grad_weight", device),
      .grad_scale = device_number(1.0, call.grad_scale, "grad_scale", device),
      .found_inf = device_number(0.0, call.found_inf, "found_inf", device),
      .weight_decay = call.weight_decay,
      .decoupled_weight_decay = call.decoupled_weight_decay,
      .maximize = call.maximize,
      .seed = call.seed,
      .param = param_dtype,
      .state = static_cast<Dtype>(call.state_dtype),
      .slices = call.slices,
      .lanes = call.lanes,
      .slice_scratch = call.slices ? call.slice_scratch->mutable_data_ptr() : nullptr,
      .slope_scratch = call.slope ? call.slope_scratch->mutable_data_ptr() : nullptr,
      .slope = call.slope ? static_cast<double*>(call.slope->mutable_data_ptr()) : nullptr,
      .stream = current_stream(device)};
  check(launch(step));
}

void upload_words(Tensor target, Tensor words) {
  require(device_code(words) == kCpuCode && words.is_contiguous() && target.is_contiguous() &&
              words.element_size() == 8 && target.element_size() == 8 && words.numel() == target.numel(),
          "Invalid words: must be contiguous int64 on the CPU, as many as the target holds");
  const int32_t device = target.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(use_device(device));
  check(upload(static_cast<int64_t*>(target.mutable_data_ptr()), static_cast<const int64_t*>(words.const_data_ptr()),
               words.numel(), current_stream(device)));
}

}  // namespace lrt::cuda
