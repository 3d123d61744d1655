// Strided shapes and the naive element addresses they mean: one index vector per element, one sum of products.
// Shared by test_strided.cpp (views) and test_strided_lists.cpp (steps).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/strided.h"

namespace lrt::test {

struct Shape {
  std::string name;
  std::vector<int64_t> sizes, strides;

  cpu::StridedView view() const { return {sizes.data(), strides.data(), static_cast<int64_t>(sizes.size())}; }
};

// Offset of every element in row-major order.
std::vector<int64_t> offsets_of(const Shape& shape);
// Elements of the smallest block that holds the shape.
int64_t extent_of(const Shape& shape);
// A permutation of random sizes with random gaps; no two elements share memory.
Shape random_shape(Random& random);
// The layouts torch makes, some of several tiles.
const std::vector<Shape>& sample_shapes();

}  // namespace lrt::test
