// What every C++ test uses: named cases, requirements that throw, a random stream. A case ends at its first failure.
// Shared by tests/cpp; main.cpp holds run_case().
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace lrt::test {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
void require(bool holds, const Parts&... message) {
  if (!holds) throw std::runtime_error(text(message...));
}

// Runs `body` unless the program was told to run other cases; prints the name and the reason if it throws.
void run_case(const std::string& name, const std::function<void()>& body);

// What several cases need, made for the first of them that runs.
template <class T>
class Lazy {
 public:
  explicit Lazy(std::function<T()> make) : make_(std::move(make)) {}
  const T& operator*() {
    if (!value_) value_ = make_();
    return *value_;
  }

 private:
  std::function<T()> make_;
  std::optional<T> value_;
};

// splitmix64: independent of the generator under test.
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double sign() { return next() & 1 ? -1.0 : 1.0; }
};

void test_bits();
void test_dtype();
void test_strided();
void test_lists();
void test_strided_lists();
void test_formulas();
void test_squares();
void test_stage();

}  // namespace lrt::test
