// Elements of a non-contiguous tensor in row-major order, moved through a small contiguous buffer one tile at a
// time: the keep bits belong to the row-major index, whatever the memory format.
#pragma once

#include <cstdint>
#include <vector>

namespace lrt::cpu {

// Sizes and strides in elements, outermost first. Dimensions of size 1 removed, mergeable ones merged.
class StridedView {
 public:
  StridedView(const int64_t* sizes, const int64_t* strides, int64_t ndim);

  // Equal views have equal offsets, which operands of one tensor can then share.
  bool operator==(const StridedView&) const = default;

  // True if two indices may name one address, which no in-place update can honour.
  bool may_overlap() const;

  // Where one dimension lies innermost, as channels do in channels_last and the rows of a transposed matrix: its size,
  // and the elements of it and of the dimensions after it, which lie together. Else 0.
  struct Slab {
    int64_t elements = 0, channels = 0;
  };
  Slab slab() const;

  // Offsets from the first element, in elements, of elements [first, first + count) in row-major order.
  void offsets(int64_t first, int64_t count, int64_t* out) const;

 private:
  std::vector<int64_t> sizes_, strides_;
};

// buffer[i] = base[offsets[i]], and back, for elements of 2, 4 or 8 bytes.
void gather(const void* base, const int64_t* offsets, int64_t count, int64_t element_size, void* buffer);
void scatter(void* base, const int64_t* offsets, int64_t count, int64_t element_size, const void* buffer);

}  // namespace lrt::cpu
