// StridedView: gather and scatter against naive addresses over any window, overlap against a search for doubles.
// Blocks and buffers have exactly their size, so that AddressSanitizer sees one element too many.
#include <algorithm>
#include <cstring>
#include <set>

#include "check.h"
#include "shapes.h"

namespace lrt::test {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes random_bytes(int64_t size, Random& random) {
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  return bytes;
}

std::vector<int64_t> window(const Shape& shape, int64_t first, int64_t count) {
  std::vector<int64_t> offsets(count);
  if (count > 0) shape.view().offsets(first, count, offsets.data());  // an empty tensor has no tile to ask for
  return offsets;
}

void gather_window(const Shape& shape, int64_t size, int64_t first, int64_t count, Random& random) {
  const std::vector<int64_t> offsets = offsets_of(shape);
  const Bytes block = random_bytes(extent_of(shape) * size, random);
  Bytes buffer(count * size);
  cpu::gather(block.data(), window(shape, first, count).data(), count, size, buffer.data());
  for (int64_t i = 0; i < count; ++i) {
    require(memcmp(&buffer[i * size], &block[offsets[first + i] * size], size) == 0, "[", shape.name, "] of ", size,
            " bytes: gather of ", count, " from ", first, ", element ", i);
  }
}

void scatter_window(const Shape& shape, int64_t size, int64_t first, int64_t count, Random& random) {
  const std::vector<int64_t> offsets = offsets_of(shape);
  Bytes block = random_bytes(extent_of(shape) * size, random), expected = block;
  const Bytes buffer = random_bytes(count * size, random);
  for (int64_t i = 0; i < count; ++i) memcpy(&expected[offsets[first + i] * size], &buffer[i * size], size);
  cpu::scatter(block.data(), window(shape, first, count).data(), count, size, buffer.data());
  require(block == expected, "[", shape.name, "] of ", size, " bytes: scatter of ", count, " from ", first);
}

void all_windows(const Shape& shape, Random& random) {
  const int64_t total = static_cast<int64_t>(offsets_of(shape).size());
  for (const int64_t size : {2, 4, 8}) {
    gather_window(shape, size, 0, total, random);
    scatter_window(shape, size, 0, total, random);
    for (int i = 0; i < 4; ++i) {
      const int64_t first = random.below(total + 1), count = random.below(total - first + 1);
      gather_window(shape, size, first, count, random);
      scatter_window(shape, size, first, count, random);
    }
  }
}

void random_windows() {
  Random random = {61};
  for (int i = 0; i < 400; ++i) all_windows(random_shape(random), random);
}

bool has_doubles(const Shape& shape) {
  const std::vector<int64_t> offsets = offsets_of(shape);
  return std::set<int64_t>(offsets.begin(), offsets.end()).size() != offsets.size();
}

// Layouts torch makes by slicing and permuting must be accepted; whatever overlaps must be refused.
void overlap() {
  for (const Shape& shape : sample_shapes()) require(!shape.view().may_overlap(), "[", shape.name, "] refused");
  Random random = {67};
  for (int i = 0; i < 2000; ++i) {
    const Shape shape = random_shape(random);
    require(!shape.view().may_overlap(), "[", shape.name, "] refused");
  }
  int overlapping = 0;
  for (int i = 0; i < 20000; ++i) {
    Shape shape = {"", std::vector<int64_t>(1 + random.below(3)), {}};
    for (int64_t& size : shape.sizes) {
      size = 1 + random.below(4);
      shape.strides.push_back(random.below(9));
      shape.name += text(size, ":", shape.strides.back(), " ");
    }
    if (!has_doubles(shape)) continue;
    ++overlapping;
    require(shape.view().may_overlap(), "[", shape.name, "] accepted");
  }
  require(overlapping > 1000, "only ", overlapping, " overlapping shapes");
}

void known_overlaps() {
  require(Shape{"expanded", {4, 3}, {0, 1}}.view().may_overlap(), "expanded");
  require(Shape{"expanded last", {4, 3}, {1, 0}}.view().may_overlap(), "expanded last");
  require(Shape{"unfolded", {5, 3}, {1, 1}}.view().may_overlap(), "unfolded");
  require(!Shape{"expanded by 1", {1, 3}, {0, 1}}.view().may_overlap(), "expanded by 1");
}

}  // namespace

void test_strided() {
  for (const Shape& shape : sample_shapes()) {
    run_case("strided: gather and scatter, " + shape.name, [&] {
      Random random = {71};
      all_windows(shape, random);
    });
  }
  run_case("strided: gather and scatter, random shapes", random_windows);
  run_case("strided: overlap against a search", overlap);
  run_case("strided: known overlaps", known_overlaps);
}

}  // namespace lrt::test
