// See square_tiles in squares.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or
// Baseline).
#include "cpu/squares.h"

#include <algorithm>

#include "core/pairs.h"
#include "core/squares.h"
#include "cpu/isa.h"
#include "cpu/prefetch.h"
#include "cpu/tile_slope.h"

namespace lrt::cpu {
namespace {

template <class Param>
double square_full_tile(const Param* grads) {
  alignas(64) Real<Param> lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    Real<Param> lane = 0;
#pragma GCC unroll 8
    for (int row = 0; row < 8; ++row) lane = lane + square_term(to_real(grads[row * kLanes + i]));
    lanes[i] = lane;
  }
  return tile_slope<LRT_ISA, Param>(lanes);
}

template <class Param>
double square_tile(const Param* grads, int64_t count) {
  if (count == kTile) return square_full_tile(grads);
  Real<Param> lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i % kLanes] = lanes[i % kLanes] + square_term(to_real(grads[i]));
  return tile_slope<LRT_ISA, Param>(lanes);
}

// So far ahead of a tile its successors are asked for: what is only read a Zen 4 reads a third faster for it, an Intel
// some percent.
constexpr int64_t kBytesAhead = 8192;

template <class Param>
double square_strided_tile(const Gradient& gradient, int64_t begin, int64_t count) {
  int64_t offsets[kTile];
  Param gathered[kTile];
  gradient.view->offsets(begin, count, offsets);
  gather(gradient.grad, offsets, count, sizeof(Param), gathered);
  return square_tile(gathered, count);
}

}  // namespace

template <>
void square_tiles<LRT_ISA>(const Gradient& gradient, int64_t first, int64_t last, double* sums) {
  with_dtype(gradient.dtype, [&]<class Param>() {
    const Param* const grads = static_cast<const Param*>(gradient.grad);
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kTile, count = std::min(kTile, gradient.numel - begin);
      ask_lines<Hint::kSecond>(reinterpret_cast<const char*>(grads + begin) + kBytesAhead, kTile * sizeof(Param));
      sums[tile - first] =
          gradient.view ? square_strided_tile<Param>(gradient, begin, count) : square_tile(grads + begin, count);
    }
  });
}

}  // namespace lrt::cpu
