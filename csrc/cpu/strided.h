// Elements of a non-contiguous tensor in row-major order, moved through a small contiguous buffer one tile at a
// time: the keep bits belong to the row-major index, whatever the memory format.
#pragma once

#include <cstdint>
#include <vector>

namespace lrt::cpu {

// Sizes and strides in elements, outermost first. Dimensions of size 1 removed, mergeable ones merged.
class StridedView {
 public:
  StridedView(const int64_t* sizes, const int64_t* strides, int64_t ndim, int64_t element_size);

  // True if two indices may name one address, which no in-place update can honour.
  bool may_overlap() const;

  void gather(const void* base, int64_t first, int64_t count, void* buffer) const;
  void scatter(void* base, int64_t first, int64_t count, const void* buffer) const;

 private:
  template <class Move>
  void for_each_run(int64_t first, int64_t count, const Move& move) const;

  std::vector<int64_t> sizes_, strides_;
  int64_t element_size_;
};

}  // namespace lrt::cpu
