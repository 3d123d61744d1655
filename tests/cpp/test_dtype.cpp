// Conversions of bfloat16 and float16: all values to float and back, and rounding to nearest even against a search
// among all values of the format, on every halfway case and on random floats.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "core/dtype.h"

namespace lrt::test {
namespace {

struct Format {
  int exponent_bits, mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
};

template <class Storage>
constexpr Format kFormat = {};
template <>
constexpr Format kFormat<BFloat16> = {8, 7};
template <>
constexpr Format kFormat<Half> = {5, 10};

// The value a pattern without sign stands for, from IEEE 754's definition.
double magnitude_of(Format format, uint32_t pattern) {
  const uint32_t mantissa = pattern & ((1u << format.mantissa_bits) - 1);
  const int exponent = static_cast<int>(pattern >> format.mantissa_bits);
  const int scale = std::max(exponent, 1) - format.bias() - format.mantissa_bits;
  return std::ldexp(mantissa + (exponent == 0 ? 0 : 1u << format.mantissa_bits), scale);
}

// Magnitudes of patterns 0 ... infinity; the last is the power of two that overflows, as rounding counts it.
std::vector<double> magnitudes(Format format) {
  std::vector<double> values;
  for (uint32_t pattern = 0; pattern <= format.infinity(); ++pattern) values.push_back(magnitude_of(format, pattern));
  return values;
}

uint32_t nearest_even(const std::vector<double>& values, double x) {
  const double magnitude = std::fabs(x);
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0u, last = static_cast<uint32_t>(values.size()) - 1;
  if (magnitude >= values[last]) return sign | last;
  const auto above = std::upper_bound(values.begin(), values.end(), magnitude);
  const uint32_t high = static_cast<uint32_t>(above - values.begin()), low = high - 1;
  const double to_low = magnitude - values[low], to_high = values[high] - magnitude;
  return sign | (to_low < to_high || (to_low == to_high && low % 2 == 0) ? low : high);
}

template <class Storage>
bool is_nan(Storage x) {
  return (static_cast<uint32_t>(x) & 0x7fffu) > kFormat<Storage>.infinity();
}

template <class Storage>
void all_values() {
  const Format format = kFormat<Storage>;
  const double inf = std::numeric_limits<double>::infinity();
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const Storage stored = static_cast<Storage>(pattern);
    const uint32_t unsigned_pattern = pattern & 0x7fffu;
    const float real = to_real(stored);
    const Storage back = from_real<Storage>(real);
    require(std::signbit(real) == (pattern >> 15 != 0), "sign of pattern ", pattern);
    if (unsigned_pattern > format.infinity()) {
      require(std::isnan(real) && is_nan(back), "pattern ", pattern, " is NaN, became ", real);
      continue;
    }
    const double expected = unsigned_pattern == format.infinity() ? inf : magnitude_of(format, unsigned_pattern);
    require(std::fabs(static_cast<double>(real)) == expected, "pattern ", pattern, " became ", real);
    require(back == stored, "pattern ", pattern, " came back as ", static_cast<uint32_t>(back));
  }
}

template <class Storage>
void require_nearest(const std::vector<double>& values, float x) {
  const Storage got = from_real<Storage>(x);
  if (std::isnan(x)) {
    require(is_nan(got), "NaN ", bit_cast<uint32_t>(x), " became ", static_cast<uint32_t>(got));
    return;
  }
  const uint32_t expected = nearest_even(values, x);
  require(static_cast<uint32_t>(got) == expected, std::hexfloat, x, " became pattern ", static_cast<uint32_t>(got),
          " not ", expected);
}

// Every value, every midpoint of neighbours (the last two overflow to infinity) and the floats beside them.
template <class Storage>
void halfway_cases() {
  const std::vector<double> values = magnitudes(kFormat<Storage>);
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float exact = static_cast<float>(values[i]), middle = static_cast<float>((values[i] + values[i + 1]) / 2);
    require(middle == (values[i] + values[i + 1]) / 2, "the midpoint above pattern ", i, " is no float");
    for (const float x : {exact, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
      require_nearest<Storage>(values, x);
      require_nearest<Storage>(values, -x);
    }
  }
}

template <class Storage>
void random_floats() {
  const std::vector<double> values = magnitudes(kFormat<Storage>);
  Random random = {29};
  for (int i = 0; i < 1000000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.next());
    const uint32_t in_half_range = (bits & 0x807fffffu) | ((97 + bits % 49) << 23);  // 2**-30 ... 2**18
    require_nearest<Storage>(values, bit_cast<float>(bits));
    require_nearest<Storage>(values, bit_cast<float>(in_half_range));
  }
}

// Float's extremes, and the NaNs whose payload lies only in the bits that are dropped.
template <class Storage>
void special_floats() {
  const std::vector<double> values = magnitudes(kFormat<Storage>);
  for (const uint32_t bits : {0u, 1u, 2u, 0x7fffu, 0x8000u, 0x8001u, 0x007fffffu, 0x00800000u, 0x7f7fffffu, 0x7f7f7fffu,
                              0x7f800000u, 0x7f800001u, 0x7f807fffu, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu}) {
    require_nearest<Storage>(values, bit_cast<float>(bits));
    require_nearest<Storage>(values, bit_cast<float>(bits | 0x80000000u));
  }
}

#if defined(__aarch64__)
#define LRT_COMPILERS_HALF __fp16  // GCC 12 has _Float16 there in C alone
#elif defined(__FLT16_MAX__)
#define LRT_COMPILERS_HALF _Float16
#endif
#if defined(LRT_COMPILERS_HALF)
void half_as_compiler() {
  Random random = {31};
  for (int i = 0; i < 1000000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.next());
    const float x = bit_cast<float>((bits & 0x807fffffu) | ((97 + bits % 49) << 23));
    const uint16_t expected = bit_cast<uint16_t>(static_cast<LRT_COMPILERS_HALF>(x));
    require(static_cast<uint16_t>(from_real<Half>(x)) == expected, std::hexfloat, x, " differs from the compiler's");
  }
}
#endif

template <class Storage>
void dtype_cases(const char* name) {
  run_case(text("dtype: all 65536 values, ", name), all_values<Storage>);
  run_case(text("dtype: halfway cases, ", name), halfway_cases<Storage>);
  run_case(text("dtype: random floats, ", name), random_floats<Storage>);
  run_case(text("dtype: special floats, ", name), special_floats<Storage>);
}

}  // namespace

void test_dtype() {
  dtype_cases<BFloat16>("bfloat16");
  dtype_cases<Half>("float16");
#if defined(LRT_COMPILERS_HALF)
  run_case("dtype: as the compiler's _Float16", half_as_compiler);
#endif
}

}  // namespace lrt::test
