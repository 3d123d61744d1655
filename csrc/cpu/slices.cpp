// See slices.h.
#include "cpu/slices.h"

#include <algorithm>

#include "core/keep.h"

namespace lrt::cpu {
namespace {

// Calls visit with a null pointer of the storage type.
template <class Visit>
auto with_type(Dtype dtype, const Visit& visit) {
  switch (dtype) {
    case Dtype::kDouble: return visit(static_cast<double*>(nullptr));
    case Dtype::kBFloat16: return visit(static_cast<BFloat16*>(nullptr));
    case Dtype::kHalf: return visit(static_cast<Half*>(nullptr));
    case Dtype::kFloat: break;
  }
  return visit(static_cast<float*>(nullptr));
}

// Adds consecutive elements of a slice to its lanes, the first of them to `lane`; returns the lane after the last.
template <class Param>
int64_t add_to_lanes(const Param* grads, int64_t count, int64_t lane, int64_t lanes, Real<Param>* sums) {
  for (int64_t done = 0; done < count;) {
    const int64_t run = std::min(lanes - lane, count - done);
    for (int64_t i = 0; i < run; ++i) sums[lane + i] = sums[lane + i] + to_real(grads[done + i]);
    done += run;
    lane = lane + run == lanes ? 0 : lane + run;
  }
  return lane;
}

template <class Param>
Real<Param> contiguous_mean(const Param* grads, int64_t length, int64_t lanes, Real<Param>* sums) {
  std::fill_n(sums, lanes, Real<Param>(0));
  if (lanes == 1) {
    for (int64_t i = 0; i < length; ++i) sums[0] = sums[0] + to_real(grads[i]);
  } else {
    add_to_lanes(grads, length, 0, lanes, sums);
  }
  return slice_mean(sums, length);
}

template <class Param>
Real<Param> strided_mean(const SlicedGrad& sliced, int64_t first, int64_t lanes, Real<Param>* sums) {
  int64_t offsets[kTile], lane = 0;
  Param gathered[kTile];
  std::fill_n(sums, lanes, Real<Param>(0));
  for (int64_t done = 0; done < sliced.length; done += kTile) {
    const int64_t count = std::min(kTile, sliced.length - done);
    sliced.view->offsets(first + done, count, offsets);
    gather(sliced.grad, offsets, count, sizeof(Param), gathered);
    lane = add_to_lanes(gathered, count, lane, lanes, sums);
  }
  return slice_mean(sums, sliced.length);
}

}  // namespace

void find_means(const SlicedGrad& sliced, int64_t first, int64_t last, double* means) {
  with_type(sliced.dtype, [&](auto* type) {
    using Param = std::remove_pointer_t<decltype(type)>;
    Real<Param> sums[kMaxSliceLanes];
    const Param* const grads = static_cast<const Param*>(sliced.grad);
    const int64_t length = sliced.length, lanes = slice_lanes(length);
    for (int64_t slice = first; slice < last; ++slice) {
      means[slice] = sliced.view ? strided_mean<Param>(sliced, slice * length, lanes, sums)
                                 : contiguous_mean(grads + slice * length, length, lanes, sums);
    }
  });
}

void centre(const SlicedGrad& sliced, const void* grads, int64_t first, int64_t count, const double* means, void* out) {
  with_type(sliced.dtype, [&](auto* type) {
    using Param = std::remove_pointer_t<decltype(type)>;
    const Param* const from = static_cast<const Param*>(grads);
    Param* const to = static_cast<Param*>(out);
    int64_t slice = first / sliced.length, left = sliced.length - first % sliced.length;
    for (int64_t done = 0; done < count; ++slice, left = sliced.length) {
      const int64_t run = std::min(left, count - done);
      const auto mean = static_cast<Real<Param>>(means[slice]);
      for (int64_t i = 0; i < run; ++i) to[done + i] = centred(from[done + i], mean);
      done += run;
    }
  });
}

}  // namespace lrt::cpu
