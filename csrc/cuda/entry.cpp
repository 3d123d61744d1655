// See entry.h. Compiled by the host compiler: torch's headers and CUDA's do not meet.
#include "cuda/entry.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "cuda/upload.h"

namespace lrt::cuda {
namespace {

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

bool lies_beside(const Tensor& table, const std::optional<Tensor>& tensor) {
  return tensor && same_device(table, *tensor) && tensor->is_contiguous();
}

void check_slices(const Operands& operands, Dtype param_dtype) {
  const int64_t bytes = slice_bytes(operands.slices, operands.partials, param_dtype);
  require(lies_beside(*operands.table, operands.slice_scratch) && bytes_of(*operands.slice_scratch) >= bytes,
          "Invalid slice_scratch: must be ", bytes, " bytes on the table's device");
}

void check_sums(const Tensor& table, int64_t chunks, const std::optional<Tensor>& scratch, Dtype param_dtype) {
  const int64_t bytes = slope_bytes(chunks, param_dtype);
  require(lies_beside(table, scratch) && bytes_of(*scratch) >= bytes, "Invalid slope_scratch: must be ", bytes,
          " bytes on the table's device");
}

void check_slope(const Operands& operands, Dtype param_dtype) {
  // On a device the other sums of core/sums.h are found by tensor operations (lrtricks_fused/step/staged.py).
  require(lies_beside(*operands.table, operands.sums) && operands.sums->numel() == 1 &&
              dtype_code(*operands.sums) == kDoubleCode,
          "Invalid sums: must be 1 float64 on the table's device");
  check_sums(*operands.table, operands.chunk_tensors->numel(), operands.slope_scratch, param_dtype);
}

void check_chunks(const Tensor& table, const std::optional<Tensor>& chunk_tensors) {
  require(lies_beside(table, chunk_tensors) && chunk_tensors->element_size() == 4,
          "Invalid chunk_tensors: must be int32 on the table's device");
}

}  // namespace

void run(const Operands& operands, const StepArguments& arguments,
         const std::function<const char*(const Step&)>& launch) {
  require(operands.table.has_value(), "lrtricks_fused: on CUDA a step takes a table of addresses");
  const Tensor& table = *operands.table;
  const int32_t device = table.get_device_index();
  const TableRow* rows = table_rows(table);
  check_chunks(table, operands.chunk_tensors);
  require(lies_beside(table, operands.prepared), "Invalid prepared: must be on the table's device");
  const Tensor &chunks = *operands.chunk_tensors, &prepared = *operands.prepared;
  require(bytes_of(prepared) >= prepared_bytes(table.size(0)), "Invalid prepared: must be ",
          prepared_bytes(table.size(0)), " bytes");
  const auto param_dtype = static_cast<Dtype>(operands.param_dtype);
  if (operands.slices) check_slices(operands, param_dtype);
  if (operands.sums) check_slope(operands, param_dtype);
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(use_device(device));
  const Step step = {.rows = rows,
                     .chunk_tensors = static_cast<const int32_t*>(chunks.const_data_ptr()),
                     .prepared = prepared.mutable_data_ptr(),
                     .tensors = table.size(0),
                     .chunks = chunks.numel(),
                     .arguments = arguments,
                     .param = param_dtype,
                     .state = static_cast<Dtype>(operands.state_dtype),
                     .mapped = operands.mapped,
                     .staged = operands.staged,
                     .stochastic = (operands.stochastic & 1) != 0,
                     .stochastic_states = (operands.stochastic & 2) != 0,
                     .slices = operands.slices,
                     .partials = operands.partials,
                     .slice_scratch = operands.slices ? operands.slice_scratch->mutable_data_ptr() : nullptr,
                     .slope_scratch = operands.sums ? operands.slope_scratch->mutable_data_ptr() : nullptr,
                     .slope = operands.sums ? static_cast<double*>(operands.sums->mutable_data_ptr()) : nullptr,
                     .stream = current_stream(device)};
  check(launch(step));
}

void table_squared_norms(Tensor table, Tensor squares, std::optional<Tensor> chunk_tensors,
                         std::optional<Tensor> scratch, int64_t param_dtype) {
  const int32_t device = table.get_device_index();
  const TableRow* rows = table_rows(table);
  const auto dtype = static_cast<Dtype>(param_dtype);
  check_chunks(table, chunk_tensors);
  check_sums(table, chunk_tensors->numel(), scratch, dtype);
  require(lies_beside(table, squares) && dtype_code(squares) == kDoubleCode && squares.numel() == table.size(0),
          "Invalid squares: must be ", table.size(0), " float64 on the table's device");
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(use_device(device));
  Step step = {};
  step.rows = rows;
  step.chunk_tensors = static_cast<const int32_t*>(chunk_tensors->const_data_ptr());
  step.tensors = table.size(0);
  step.chunks = chunk_tensors->numel();
  step.param = dtype;
  step.slope_scratch = scratch->mutable_data_ptr();
  step.stream = current_stream(device);
  check(launch_squared_norms(step, static_cast<double*>(squares.mutable_data_ptr())));
}

void write_clip(Tensor squares, Tensor norm, Tensor clip, std::optional<Tensor> grad_scale, double max_norm) {
  const int32_t device = squares.get_device_index();
  const auto doubles = [&](const Tensor& tensor, const char* name) {
    require(lies_beside(squares, tensor) && dtype_code(tensor) == kDoubleCode, "Invalid ", name,
            ": must be float64 on the device of squares");
    return static_cast<double*>(tensor.mutable_data_ptr());
  };
  require(squares.numel() >= kSlopeColumns && norm.numel() == 1 && clip.numel() == 1,
          "Invalid squares, norm, clip: they are too small");
  double *const all = doubles(squares, "squares"), *const out = doubles(norm, "norm");
  double* const factor = doubles(clip, "clip");
  const Scalar scale = scalar_of(1.0, grad_scale, "grad_scale", &squares);
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(use_device(device));
  check(launch_clip(all, squares.numel() - kSlopeColumns, scale, max_norm, out, factor, current_stream(device)));
}

void upload_words(Tensor target, Tensor words) {
  const bool column = target.dim() == 1;  // of any stride
  require(device_code(words) == kCpuCode && words.is_contiguous() && (column || target.is_contiguous()) &&
              words.element_size() == 8 && target.element_size() == 8 && words.numel() == target.numel(),
          "Invalid words: must be contiguous int64 on the CPU, as many as the target holds");
  const int32_t device = target.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(use_device(device));
  check(upload(static_cast<int64_t*>(target.mutable_data_ptr()), column ? target.stride(0) : 1,
               static_cast<const int64_t*>(words.const_data_ptr()), words.numel(), current_stream(device)));
}

}  // namespace lrt::cuda
