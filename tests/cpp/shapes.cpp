// Naive addressing of strided shapes (see shapes.h).
// Independent of cpu/strided.cpp: no merged dimensions, no runs.
#include "shapes.h"

#include <algorithm>
#include <numeric>

namespace lrt::test {

std::vector<int64_t> offsets_of(const Shape& shape) {
  std::vector<int64_t> offsets = {0};
  for (size_t d = 0; d < shape.sizes.size(); ++d) {
    std::vector<int64_t> finer;
    for (const int64_t offset : offsets) {
      for (int64_t i = 0; i < shape.sizes[d]; ++i) finer.push_back(offset + i * shape.strides[d]);
    }
    offsets = finer;
  }
  return offsets;
}

int64_t extent_of(const Shape& shape) {
  const std::vector<int64_t> offsets = offsets_of(shape);
  return offsets.empty() ? 0 : 1 + *std::max_element(offsets.begin(), offsets.end());
}

Shape random_shape(Random& random) {
  const size_t ndim = random.below(6);
  Shape shape = {"", std::vector<int64_t>(ndim), std::vector<int64_t>(ndim)};
  for (int64_t& size : shape.sizes) size = 1 + random.below(6);
  std::vector<size_t> order(ndim);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = ndim; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  int64_t pitch = 1 + random.below(3);
  for (const size_t d : order) {
    shape.strides[d] = pitch;
    pitch = pitch * shape.sizes[d] + (random.below(2) ? random.below(4) : 0);
  }
  for (size_t d = 0; d < ndim; ++d) shape.name += text(d ? " " : "", shape.sizes[d], ":", shape.strides[d]);
  return shape;
}

const std::vector<Shape>& sample_shapes() {
  static const std::vector<Shape> shapes = {
      {"0-dim", {}, {}},
      {"one element", {1, 1, 1}, {77, 5, 9}},
      {"empty", {3, 0, 2}, {2, 2, 1}},
      {"contiguous", {7, 300}, {300, 1}},
      {"transposed", {37, 29}, {1, 37}},
      {"channels_last", {4, 6, 10, 11}, {660, 1, 66, 6}},
      {"channels_last, one channel", {4, 1, 10, 11}, {110, 1, 11, 1}},
      {"every third", {1025}, {3}},
      {"columns of a wider matrix", {40, 30}, {64, 1}},
      {"every second column", {40, 30}, {64, 2}},
      {"permuted", {5, 11, 13}, {11, 1, 55}},
      {"size-1 dimensions between", {1, 20, 1, 33, 1}, {999, 1, 7, 20, 3}},
      {"mergeable pairs", {3, 4, 8, 6}, {4, 1, 72, 12}},
      {"five dimensions", {2, 3, 4, 5, 6}, {360, 1, 3, 12, 60}},
  };
  return shapes;
}

}  // namespace lrt::test
