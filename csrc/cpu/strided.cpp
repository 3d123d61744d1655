// Row-major traversal of strided memory (see strided.h).
#include "cpu/strided.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace lrt::cpu {
namespace {

template <class Unit>
void gather_run(const char* from, int64_t stride, int64_t count, char* to) {
  const Unit* source = reinterpret_cast<const Unit*>(from);
  Unit* target = reinterpret_cast<Unit*>(to);
  for (int64_t i = 0; i < count; ++i) target[i] = source[i * stride];
}

template <class Unit>
void scatter_run(char* to, int64_t stride, int64_t count, const char* from) {
  Unit* target = reinterpret_cast<Unit*>(to);
  const Unit* source = reinterpret_cast<const Unit*>(from);
  for (int64_t i = 0; i < count; ++i) target[i * stride] = source[i];
}

}  // namespace

StridedView::StridedView(const int64_t* sizes, const int64_t* strides, int64_t ndim, int64_t element_size)
    : element_size_(element_size) {
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

template <class Move>
void StridedView::for_each_run(int64_t first, int64_t count, const Move& move) const {
  const int ndim = static_cast<int>(sizes_.size());
  if (ndim == 0) return move(int64_t{0}, int64_t{0}, std::min<int64_t>(count, 1), int64_t{1});
  const int64_t inner = sizes_[ndim - 1];
  for (int64_t done = 0; done < count;) {
    int64_t offset = 0, rest = (first + done) / inner;
    const int64_t column = (first + done) % inner, run = std::min(inner - column, count - done);
    for (int d = ndim - 2; d >= 0; --d) {
      offset += rest % sizes_[d] * strides_[d];
      rest /= sizes_[d];
    }
    move(offset + column * strides_[ndim - 1], done, run, strides_[ndim - 1]);
    done += run;
  }
}

void StridedView::gather(const void* base, int64_t first, int64_t count, void* buffer) const {
  for_each_run(first, count, [&](int64_t offset, int64_t done, int64_t run, int64_t stride) {
    const char* from = static_cast<const char*>(base) + offset * element_size_;
    char* to = static_cast<char*>(buffer) + done * element_size_;
    if (element_size_ == 2) return gather_run<uint16_t>(from, stride, run, to);
    if (element_size_ == 4) return gather_run<uint32_t>(from, stride, run, to);
    gather_run<uint64_t>(from, stride, run, to);
  });
}

void StridedView::scatter(void* base, int64_t first, int64_t count, const void* buffer) const {
  for_each_run(first, count, [&](int64_t offset, int64_t done, int64_t run, int64_t stride) {
    char* to = static_cast<char*>(base) + offset * element_size_;
    const char* from = static_cast<const char*>(buffer) + done * element_size_;
    if (element_size_ == 2) return scatter_run<uint16_t>(to, stride, run, from);
    if (element_size_ == 4) return scatter_run<uint32_t>(to, stride, run, from);
    scatter_run<uint64_t>(to, stride, run, from);
  });
}

}  // namespace lrt::cpu
