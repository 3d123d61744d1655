// Arithmetic every backend shares: the compute type of a storage type, and exact helpers.
// No torch, CUDA runtime or Triton header is included here (see design, layout).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LRT_HD __host__ __device__ __forceinline__
#else
// always_inline: a translation unit built for AVX-512 must not emit an out-of-line copy that the
// linker could hand to the baseline one.
#define LRT_HD inline __attribute__((always_inline))
#endif

namespace lrt {

template <class To, class From>
LRT_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Correctly rounded square root on host and device alike.
LRT_HD float sqrt_rn(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
LRT_HD double sqrt_rn(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// The larger of a running maximum and a new value; a NaN that is new is kept, as torch.maximum would.
template <class Real>
LRT_HD Real running_maximum(Real maximum, Real value) {
  return maximum > value ? maximum : value;
}

// Whether this can be a count of steps: a whole number below 2**53, which the next step still changes.
LRT_HD bool is_step_count(double count) {
  return count >= 0.0 && count < 9007199254740992.0 && static_cast<double>(static_cast<int64_t>(count)) == count;
}

// base ** exponent for a whole, non-negative exponent, by squaring. Only IEEE double products, so
// host, device and Python agree bit for bit where their pow() would not.
LRT_HD double int_pow(double base, double exponent) {
  double result = 1.0;
  for (uint64_t n = static_cast<uint64_t>(exponent); n != 0; n >>= 1) {
    if (n & 1) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace lrt
