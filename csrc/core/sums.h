// What a step can sum over its elements, each in the order of a slope (core/slope.h): the slope alone, or all.
#pragma once

#include "core/slope.h"

namespace lrt {

// kKept: elements that the keep decision lets move; kChanged: those whose stored bits are others.
enum Sum { kSlope, kKept, kChanged, kSquaredUpdate, kSquaredParam, kSums };
constexpr int kSumsAndCount = kSums + 1;  // of a tensor of all sums, which ends with how many elements were stepped

constexpr bool is_number_of_sums(int64_t numbers) { return numbers == 1 || numbers == kSumsAndCount; }

LRT_HD bool same_bits(float a, float b) { return bit_cast<uint32_t>(a) == bit_cast<uint32_t>(b); }
LRT_HD bool same_bits(double a, double b) { return bit_cast<uint64_t>(a) == bit_cast<uint64_t>(b); }
LRT_HD bool same_bits(BFloat16 a, BFloat16 b) { return a == b; }
LRT_HD bool same_bits(Half a, Half b) { return a == b; }

// One element's share of each sum but the slope: sums[k * pitch] gains the k-th. Of the stored parameters, as a slope.
template <class Param>
LRT_HD void add_metrics(Real<Param>* sums, int64_t pitch, bool keep, Param old_param, Param new_param) {
  const auto add = [&](Sum sum, Real<Param> term) { sums[sum * pitch] = sums[sum * pitch] + term; };
  const Real<Param> updated = to_real(new_param), displacement = updated - to_real(old_param);
  add(kKept, keep ? Real<Param>(1) : Real<Param>(0));
  add(kChanged, same_bits(old_param, new_param) ? Real<Param>(0) : Real<Param>(1));
  add(kSquaredUpdate, displacement * displacement);
  add(kSquaredParam, updated * updated);
}

}  // namespace lrt
