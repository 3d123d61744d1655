// See norms.h.
#include "cpu/norms.h"

#include <algorithm>
#include <deque>
#include <memory>

#include "core/squares.h"
#include "cpu/columns.h"
#include "cpu/engine.h"
#include "cpu/kernels.h"
#include "cpu/squares.h"

namespace lrt::cpu {
namespace {

int64_t tiles_of(const Gradient& gradient) { return (gradient.numel + kTile - 1) / kTile; }

// Where the tiles of each gradient begin in the list of all, and their number behind them.
std::vector<int64_t> first_tiles(const std::vector<Gradient>& gradients) {
  std::vector<int64_t> first = {0};
  for (const Gradient& gradient : gradients) first.push_back(first.back() + tiles_of(gradient));
  return first;
}

void write_squares(const std::vector<Gradient>& gradients, const Tensor& squares) {
  require(on_cpu(squares) && squares.is_contiguous() && dtype_of(squares) == Dtype::kDouble &&
              squares.numel() == static_cast<int64_t>(gradients.size()),
          "Invalid squares: must be ", gradients.size(), " float64 on the CPU");
  const std::vector<int64_t> first = first_tiles(gradients);
  const std::unique_ptr<double[]> sums(new double[first.back()]);  // each will be written
  const SquareTiles square = with_active_isa([](auto isa) -> SquareTiles { return square_tiles<decltype(isa)>; });
  torch::stable::parallel_for(0, first.back(), kGrainTiles, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; begin < end; ++i) {
      const int64_t own_end = std::min(end, first[i + 1]);
      if (begin == own_end) continue;  // an empty one
      square(gradients[i], begin - first[i], own_end - first[i], sums.get() + begin);
      begin = own_end;
    }
  });
  double* const out = static_cast<double*>(squares.mutable_data_ptr());
  for (size_t i = 0; i < gradients.size(); ++i) {
    Columns columns;
    columns.add_chunks(sums.get() + first[i], first[i + 1] - first[i]);
    out[i] = columns.sum();
  }
}

double* number(const Tensor& tensor, const char* name) {
  require(on_cpu(tensor) && tensor.numel() == 1 && dtype_of(tensor) == Dtype::kDouble, "Invalid ", name,
          ": must be one float64 on the CPU");
  return static_cast<double*>(tensor.mutable_data_ptr());
}

}  // namespace

void squared_norms(std::vector<Tensor> grads, Tensor squares) {
  std::vector<Gradient> gradients;
  std::deque<StridedView> views;  // stable addresses
  for (size_t i = 0; i < grads.size(); ++i) {
    const Tensor& grad = grads[i];
    const std::optional<Dtype> dtype = dtype_of(grad);
    require(on_cpu(grad) && dtype, "Invalid grads[", i, "]: must be floating and on the CPU");
    require_memory(grad, "grads", i);
    const StridedView* view = nullptr;
    if (!grad.is_contiguous()) {
      view = &views.emplace_back(grad.sizes().data(), grad.strides().data(), grad.dim());
    }
    gradients.push_back({grad.const_data_ptr(), view, *dtype, grad.numel()});
  }
  write_squares(gradients, squares);
}

void write_clip(Tensor squares, Tensor norm, Tensor clip, std::optional<Tensor> grad_scale, double max_norm) {
  require(on_cpu(squares) && squares.is_contiguous() && dtype_of(squares) == Dtype::kDouble &&
              squares.numel() >= kSlopeColumns,
          "Invalid squares: must be float64 on the CPU, and ", kSlopeColumns, " more than there are");
  double *const norm_out = number(norm, "norm"), *const clip_out = number(clip, "clip");
  const Scalar scale = scalar_of(1.0, grad_scale, "grad_scale", nullptr);
  const double* const values = static_cast<const double*>(squares.const_data_ptr());
  Columns columns;
  for (int64_t i = 0; i < squares.numel() - kSlopeColumns; ++i) columns.add(values[i]);
  const Clip found = clip_of(columns.sum(), scale.read(), max_norm);
  *norm_out = found.norm;
  *clip_out = found.clip;
}

void table_squared_norms(Tensor table, Tensor squares, std::optional<Tensor>, std::optional<Tensor>, int64_t) {
  const TableRow* rows = cpu_rows(table);
  std::vector<Gradient> gradients;
  std::deque<StridedView> views;
  for (int64_t i = 0; i < table.size(0); ++i) {
    const TableRow& row = rows[i];
    const StridedView* view = nullptr;
    if (row.slab != 0) {  // row-major indices of (slab, channel, place), in channels_last
      const int64_t sizes[] = {row.numel / row.slab, row.channels, row.slab / row.channels};
      const int64_t strides[] = {row.slab, 1, row.channels};
      view = &views.emplace_back(sizes, strides, 3);
    }
    gradients.push_back({reinterpret_cast<const void*>(row.grad), view, static_cast<Dtype>(row.grad_dtype), row.numel});
  }
  write_squares(gradients, squares);
}

}  // namespace lrt::cpu
