// Sums of squares by tiles equal those of the order in core/squares.h, element by element, whatever the layout.
#include <algorithm>
#include <vector>

#include "check.h"
#include "core/pairs.h"
#include "core/squares.h"
#include "cpu/kernels.h"
#include "cpu/squares.h"
#include "shapes.h"
#include "variants.h"

namespace lrt::test {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes random_bytes(Dtype dtype, int64_t count, Random& random) {
  Bytes bytes(count * size_of(dtype));
  for (int64_t i = 0; i < count; ++i) store(dtype, random.sign() * random.uniform(), &bytes[i * size_of(dtype)]);
  return bytes;
}

// A lane takes every 64th element; units of 16 bytes of lanes, and then a tile its units, from the first to the last.
template <class Param>
double expected_tile(const std::vector<Param>& grads, int64_t begin) {
  Real<Param> lanes[kLanes] = {};
  const int64_t end = std::min<int64_t>(grads.size(), begin + kTile);
  for (int64_t i = begin; i < end; ++i) {
    const Real<Param> grad = to_real(grads[i]);
    lanes[(i - begin) % kLanes] = lanes[(i - begin) % kLanes] + grad * grad;
  }
  double sum = 0;
  constexpr int kUnit = 16 / static_cast<int>(sizeof(Param));
  for (int first = 0; first < kLanes; first += kUnit) {
    Real<Param> unit = lanes[first];
    for (int i = 1; i < kUnit; ++i) unit = unit + lanes[first + i];
    sum = sum + static_cast<double>(unit);
  }
  return sum;
}

// `bytes` hold the gradient's elements at these offsets.
void squares_case(Dtype dtype, const Bytes& bytes, const std::vector<int64_t>& offsets, const cpu::StridedView* view) {
  const int64_t count = static_cast<int64_t>(offsets.size()), tiles = (count + kTile - 1) / kTile;
  with_dtype(dtype, [&]<class Param>() {
    const Param* const grads = reinterpret_cast<const Param*>(bytes.data());
    std::vector<Param> in_order;
    for (const int64_t offset : offsets) in_order.push_back(grads[offset]);
    const cpu::Gradient gradient = {grads, view, dtype, count};
    for (const cpu::Isa isa : available_isas()) {
      for (int64_t first = 0; first <= tiles; ++first) {
        std::vector<double> sums(tiles - first);
        cpu::with_isa(isa, [&](auto tag) { cpu::square_tiles<decltype(tag)>(gradient, first, tiles, sums.data()); });
        for (int64_t tile = first; tile < tiles; ++tile) {
          const double sum = expected_tile(in_order, tile * kTile);
          require(sums[tile - first] == sum, cpu::isa_name(isa), ", tile ", tile, ": ", sums[tile - first], ", not ",
                  sum);
        }
      }
    }
  });
}

}  // namespace

void test_squares() {
  Random random = {5};
  for (const Dtype dtype : {Dtype::kFloat, Dtype::kDouble, Dtype::kBFloat16, Dtype::kHalf}) {
    for (const int64_t count : {0, 1, 63, 64, 65, 511, 512, 513, 2000}) {
      run_case(text("squares of ", count, ", dtype ", static_cast<int>(dtype)), [&] {
        std::vector<int64_t> offsets(count);
        for (int64_t i = 0; i < count; ++i) offsets[i] = i;
        squares_case(dtype, random_bytes(dtype, count, random), offsets, nullptr);
      });
    }
    for (size_t i = 0; i < sample_shapes().size(); ++i) {
      run_case(text("squares of strided shape ", i, ", dtype ", static_cast<int>(dtype)), [&] {
        const Shape& shape = sample_shapes()[i];
        const cpu::StridedView view = shape.view();
        squares_case(dtype, random_bytes(dtype, extent_of(shape), random), offsets_of(shape), &view);
      });
    }
  }
}

}  // namespace lrt::test
