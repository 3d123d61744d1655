// Row-major traversal of strided memory (see strided.h).
#include "cpu/strided.h"

#include <algorithm>
#include <numeric>

namespace lrt::cpu {
namespace {

template <class Unit>
void gather_units(const void* base, const int64_t* offsets, int64_t count, void* buffer) {
  const Unit* from = static_cast<const Unit*>(base);
  Unit* to = static_cast<Unit*>(buffer);
  for (int64_t i = 0; i < count; ++i) to[i] = from[offsets[i]];
}

template <class Unit>
void scatter_units(void* base, const int64_t* offsets, int64_t count, const void* buffer) {
  Unit* to = static_cast<Unit*>(base);
  const Unit* from = static_cast<const Unit*>(buffer);
  for (int64_t i = 0; i < count; ++i) to[offsets[i]] = from[i];
}

}  // namespace

StridedView::StridedView(const int64_t* sizes, const int64_t* strides, int64_t ndim) {
  for (int64_t d = 0; d < ndim; ++d) {
    if (sizes[d] == 1) continue;
    if (!sizes_.empty() && strides_.back() == strides[d] * sizes[d]) {
      sizes_.back() *= sizes[d];
      strides_.back() = strides[d];
    } else {
      sizes_.push_back(sizes[d]);
      strides_.push_back(strides[d]);
    }
  }
  if (sizes_.empty()) {  // a single element
    sizes_.push_back(1);
    strides_.push_back(1);
  }
}

bool StridedView::may_overlap() const {
  std::vector<size_t> order(sizes_.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides_[a] < strides_[b]; });
  int64_t reach = 0;  // the largest offset the inner dimensions span
  for (const size_t d : order) {
    if (strides_[d] <= reach) return true;
    reach += strides_[d] * (sizes_[d] - 1);
  }
  return false;
}

void StridedView::offsets(int64_t first, int64_t count, int64_t* out) const {
  if (count == 0) return;  // an empty tensor has no index to start from
  const int inner = static_cast<int>(sizes_.size()) - 1;
  std::vector<int64_t> index(sizes_.size());
  int64_t row = 0;  // offset of the run along the innermost dimension
  for (int d = inner; d >= 0; --d) {
    index[d] = first % sizes_[d];
    first /= sizes_[d];
    if (d != inner) row += index[d] * strides_[d];
  }
  for (int64_t done = 0; done < count; index[inner] = 0) {
    const int64_t run = std::min(sizes_[inner] - index[inner], count - done);
    for (int64_t i = 0; i < run; ++i) out[done++] = row + (index[inner] + i) * strides_[inner];
    for (int d = inner - 1; d >= 0; --d) {  // to the next run, like an odometer
      row += strides_[d];
      if (++index[d] < sizes_[d]) break;
      row -= sizes_[d] * strides_[d];
      index[d] = 0;
    }
  }
}

void gather(const void* base, const int64_t* offsets, int64_t count, int64_t element_size, void* buffer) {
  if (element_size == 2) return gather_units<uint16_t>(base, offsets, count, buffer);
  if (element_size == 4) return gather_units<uint32_t>(base, offsets, count, buffer);
  gather_units<uint64_t>(base, offsets, count, buffer);
}

void scatter(void* base, const int64_t* offsets, int64_t count, int64_t element_size, const void* buffer) {
  if (element_size == 2) return scatter_units<uint16_t>(base, offsets, count, buffer);
  if (element_size == 4) return scatter_units<uint32_t>(base, offsets, count, buffer);
  scatter_units<uint64_t>(base, offsets, count, buffer);
}

}  // namespace lrt::cpu
