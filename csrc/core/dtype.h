// Storage types and their exact conversion to and from the compute type (float, or double for double).
// Integer selects only: the loops that call these vectorise, and round to nearest even on every target.
#pragma once

#include "core/numeric.h"

namespace lrt {

// Enumerations, not structs: GCC vectorises loads and stores of scalars only.
enum class BFloat16 : uint16_t {};
enum class Half : uint16_t {};

enum class Dtype { kFloat, kDouble, kBFloat16, kHalf };  // the codes of a table's columns, too

template <class Storage>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class Storage>
using Real = typename ComputeType<Storage>::type;

LRT_HD float to_real(float x) { return x; }
LRT_HD double to_real(double x) { return x; }
LRT_HD float to_real(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x) << 16); }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// The instructions, which compute what the integer code below does (but for the payload of a NaN).
LRT_HD float to_real(Half x) {
  float real;
  asm("cvt.f32.f16 %0, %1;" : "=f"(real) : "h"(static_cast<uint16_t>(x)));
  return real;
}
#else
LRT_HD float to_real(Half x) {
  const uint32_t bits = static_cast<uint32_t>(x);
  const uint32_t magnitude = (bits & 0x7fffu) << 13;  // exponent and mantissa in float's place
  const uint32_t exponent = magnitude & 0x0f800000u;
  const uint32_t normal = magnitude + ((127u - 15u) << 23);
  const uint32_t inf_nan = normal + ((128u - 16u) << 23);
  // A subnormal half is a float whose implicit bit must be taken away again; exact.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(normal + (1u << 23)) - bit_cast<float>(113u << 23));
  const uint32_t unsigned_bits = exponent == 0x0f800000u ? inf_nan : exponent == 0 ? subnormal : normal;
  return bit_cast<float>(unsigned_bits | ((bits & 0x8000u) << 16));
}
#endif

// A float rounded to bfloat16, in the upper half of a word; what is in the lower half is of no meaning.
LRT_HD uint32_t rounded_to_upper_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return x != x ? 0x7fc00000u : rounded;
}

template <class Storage>
LRT_HD Storage from_real(Real<Storage> x) {
  return x;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
LRT_HD BFloat16 from_real<BFloat16>(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return static_cast<BFloat16>(bits);
}
template <>
LRT_HD Half from_real<Half>(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return static_cast<Half>(bits);
}
#else
template <>
LRT_HD BFloat16 from_real<BFloat16>(float x) {
  return static_cast<BFloat16>(rounded_to_upper_half(x) >> 16);
}
template <>
LRT_HD Half from_real<Half>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t magnitude = bits ^ sign;
  const uint32_t subnormal_magic = ((127u - 15u) + (23u - 10u) + 1u) << 23;  // 0.5: its ulp is half's
  const uint32_t subnormal =
      bit_cast<uint32_t>(bit_cast<float>(magnitude) + bit_cast<float>(subnormal_magic)) - subnormal_magic;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - ((127u - 15u) << 23)) >> 13;
  const uint32_t inf_nan = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t unsigned_bits = magnitude >= ((127u + 16u) << 23) ? inf_nan
                                 : magnitude < (113u << 23)        ? subnormal
                                                                   : normal;
  return static_cast<Half>(unsigned_bits | (sign >> 16));
}
#endif

}  // namespace lrt
