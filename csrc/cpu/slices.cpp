// See slices.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/slices.h"

#include <algorithm>

#include "core/keep.h"
#include "core/pairs.h"

namespace lrt::cpu {
namespace {

// Adds consecutive elements of a slice to its partials, the first of them to `partial`; returns the partial after the
// last.
template <class Param>
int64_t add_to_partials(const Param* grads, int64_t count, int64_t partial, int64_t partials, Real<Param>* sums) {
  for (int64_t done = 0; done < count;) {
    const int64_t run = std::min(partials - partial, count - done);
#pragma GCC ivdep
    for (int64_t i = 0; i < run; ++i) sums[partial + i] = sums[partial + i] + to_real(grads[done + i]);
    done += run;
    partial = partial + run == partials ? 0 : partial + run;
  }
  return partial;
}

// The mean of a slice of kCount partials, which stay in registers.
template <int kCount, class Param>
Real<Param> mean_of_partials(const Param* grads, int64_t length) {
  Real<Param> sums[kCount] = {};
  int64_t done = 0;
  for (; done + kCount <= length; done += kCount) {
    for (int k = 0; k < kCount; ++k) sums[k] = sums[k] + to_real(grads[done + k]);
  }
  for (int k = 0; done + k < length; ++k) sums[k] = sums[k] + to_real(grads[done + k]);
  return slice_mean(sums, length);
}

template <class Param>
Real<Param> contiguous_mean(const Param* grads, int64_t length, int64_t partials, Real<Param>* sums) {
  if (partials == 1) return mean_of_partials<1>(grads, length);
  if (partials == kSlicePartials) return mean_of_partials<static_cast<int>(kSlicePartials)>(grads, length);
  std::fill_n(sums, partials, Real<Param>(0));
  add_to_partials(grads, length, 0, partials, sums);
  return slice_mean(sums, length);
}

template <class Param>
Real<Param> strided_mean(const SlicedGrad& sliced, int64_t first, int64_t partials, Real<Param>* sums) {
  int64_t offsets[kTile], partial = 0;
  Param gathered[kTile];
  std::fill_n(sums, partials, Real<Param>(0));
  for (int64_t done = 0; done < sliced.length; done += kTile) {
    const int64_t count = std::min(kTile, sliced.length - done);
    sliced.view->offsets(first + done, count, offsets);
    gather(sliced.grad, offsets, count, sizeof(Param), gathered);
    partial = add_to_partials(gathered, count, partial, partials, sums);
  }
  return slice_mean(sums, sliced.length);
}

void find_means(const SlicedGrad& sliced, int64_t first, int64_t last, double* means) {
  with_dtype(sliced.dtype, [&]<class Param>() {
    static thread_local Real<Param> sums[kMaxSlicePartials];  // not on the stack, which may be small
    const Param* const grads = static_cast<const Param*>(sliced.grad);
    const int64_t length = sliced.length, partials = slice_partials(length);
    for (int64_t slice = first; slice < last; ++slice) {
      means[slice - first] = sliced.view ? strided_mean<Param>(sliced, slice * length, partials, sums)
                                         : contiguous_mean(grads + slice * length, length, partials, sums);
    }
  });
}

void centralize(const SlicedGrad& sliced, const void* grads, int64_t first, int64_t count, const double* means,
                void* out) {
  with_dtype(sliced.dtype, [&]<class Param>() {
    const Param* from = static_cast<const Param*>(grads);
    Param* to = static_cast<Param*>(out);
    int64_t left = sliced.length - first % sliced.length;
    for (const Param* const end = from + count; from < end; ++means, left = sliced.length) {
      const int64_t run = std::min<int64_t>(left, end - from);
      const auto mean = static_cast<Real<Param>>(*means);
#pragma GCC ivdep
      for (int64_t i = 0; i < run; ++i) to[i] = centralized(from[i], mean);
      from += run;
      to += run;
    }
  });
}

}  // namespace

template <>
const SliceFunctions& slice_functions<LRT_ISA>() {
  static constexpr SliceFunctions functions = {find_means, centralize};
  return functions;
}

}  // namespace lrt::cpu
