// Row-major traversal of strided memory (see strided.h).
#include "cpu/strided.h"

#include <algorithm>
#include <numeric>

namespace lrt::cpu {
namespace {

// visit with a number of as many bytes as an element has: 2, 4 or 8.
template <class Visit>
void with_unit(int64_t element_size, const Visit& visit) {
  switch (element_size) {
    case 2: return visit(uint16_t());
    case 4: return visit(uint32_t());
    case 8: return visit(uint64_t());
    default: __builtin_trap();  // no storage type is as large
  }
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

StridedView::Slab StridedView::slab() const {
  const size_t dims = sizes_.size();
  if (dims != 2 && dims != 3) return {};
  const int64_t channels = sizes_[dims - 2], elements = channels * sizes_[dims - 1];
  const bool alike =
      strides_[dims - 2] == 1 && strides_[dims - 1] == channels && (dims == 2 || strides_[0] == elements);
  return alike ? Slab{elements, channels} : Slab{};
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
  with_unit(element_size, [=]<class Unit>(Unit) {
    const Unit* from = static_cast<const Unit*>(base);
    Unit* to = static_cast<Unit*>(buffer);
    for (int64_t i = 0; i < count; ++i) to[i] = from[offsets[i]];
  });
}

void scatter(void* base, const int64_t* offsets, int64_t count, int64_t element_size, const void* buffer) {
  with_unit(element_size, [=]<class Unit>(Unit) {
    Unit* to = static_cast<Unit*>(base);
    const Unit* from = static_cast<const Unit*>(buffer);
    for (int64_t i = 0; i < count; ++i) to[offsets[i]] = from[i];
  });
}

}  // namespace lrt::cpu
