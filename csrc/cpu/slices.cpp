// See slices.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/slices.h"

#include <algorithm>
#include <cstring>

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

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Neighbouring partials, as one value of the compiler's: an array of such values stays in registers, one of numbers is
// stored after each addition.
template <class Real>
struct Vector {
  typedef Real Type __attribute__((vector_size(kVectorBytes)));
};
template <class Real>
using Partials = Vector<Real>::Type;

// A row: kSlicePartials of them.
template <class Real>
constexpr int kRowVectors = kSlicePartials * sizeof(Real) / kVectorBytes;
// Rows whose partials are held at a time: of so many slices, or of one.
template <class Real>
constexpr int kRowsHeld = std::clamp(8 / kRowVectors<Real>, 1, 4);

template <class Param>
LRT_HD void load(const Param* grads, Partials<Real<Param>>& values) {
  constexpr int kCount = kVectorBytes / sizeof(Real<Param>);
  alignas(kVectorBytes) Real<Param> elements[kCount];
  for (int k = 0; k < kCount; ++k) elements[k] = to_real(grads[k]);
  std::memcpy(&values, elements, sizeof(values));
}

// kRows rows of each of kSlices slices: chains of additions that do not wait for each other. `grads` is the first
// element of the first partial, `left` what the slice has from there.
template <int kRows, int kSlices, class Param>
void sum_rows(const Param* grads, int64_t left, int64_t length, int64_t partials, Real<Param>* out) {
  constexpr int64_t kCount = kRows * kSlicePartials;
  constexpr int kVectors = kRows * kRowVectors<Real<Param>>;
  Partials<Real<Param>> sums[kSlices][kVectors] = {};
  int64_t done = 0;
  for (; done + kCount <= left; done += partials) {
#pragma GCC unroll 4
    for (int s = 0; s < kSlices; ++s) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        Partials<Real<Param>> values;
        load(grads + s * length + done + v * (kCount / kVectors), values);
        sums[s][v] = sums[s][v] + values;
      }
    }
  }
  for (int s = 0; s < kSlices; ++s) {
    Real<Param>* const own = out + s * partials;
    std::memcpy(own, sums[s], sizeof(sums[s]));
    for (int64_t k = 0; done + k < left; ++k) own[k] = own[k] + to_real(grads[s * length + done + k]);
  }
}

// The only partial of each of kSlices short slices.
template <int kSlices, class Param>
void sum_short(const Param* grads, int64_t length, Real<Param>* out) {
  Real<Param> sums[kSlices] = {};
  for (int64_t i = 0; i < length; ++i) {
    for (int s = 0; s < kSlices; ++s) sums[s] = sums[s] + to_real(grads[s * length + i]);
  }
  std::copy_n(sums, kSlices, out);
}

// The means of kSlices slices that lie one behind the other.
template <int kSlices, class Param>
void contiguous_means(const Param* grads, int64_t length, Real<Param>* sums, double* means) {
  const int64_t partials = slice_partials(length);
  int64_t first = 0;
  const auto sum = [&]<int kRows>() {
    for (; first + kRows * kSlicePartials <= partials; first += kRows * kSlicePartials) {
      sum_rows<kRows, kSlices>(grads + first, length - first, length, partials, sums + first);
    }
  };
  if (partials == 1) {
    sum_short<kSlices>(grads, length, sums);
  } else {
    if constexpr (kSlices == 1) sum.template operator()<kRowsHeld<Real<Param>>>();
    sum.template operator()<1>();
  }
  for (int s = 0; s < kSlices; ++s) means[s] = slice_mean(sums + s * partials, length);
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
    int64_t slice = first;
    if (sliced.view) {
      for (; slice < last; ++slice) means[slice - first] = strided_mean<Param>(sliced, slice * length, partials, sums);
    }
    constexpr int kTogether = kRowsHeld<Real<Param>>;
    for (; partials <= kSlicePartials && slice + kTogether <= last; slice += kTogether) {
      contiguous_means<kTogether>(grads + slice * length, length, sums, means + (slice - first));
    }
    for (; slice < last; ++slice) contiguous_means<1>(grads + slice * length, length, sums, means + (slice - first));
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
