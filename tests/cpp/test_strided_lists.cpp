// Steps on strided operands equal steps on contiguous ones, element by element, and leave the gaps alone.
// Lists mix layouts and dtypes; each case makes other operands strided.
#include <cstring>

#include "check.h"
#include "lists.h"
#include "shapes.h"

namespace lrt::test {
namespace {

// Which operands are strided: bits 0 param, 1 grad, 2 states.
constexpr struct {
  const char* name;
  unsigned operands;
} kStrided[] = {{"param", 1}, {"grad", 2}, {"states", 4}, {"param and grad", 3}, {"all", 7}};

Bytes spread(const Bytes& contiguous, const Shape& shape, int64_t size) {
  const std::vector<int64_t> offsets = offsets_of(shape);
  Bytes block(extent_of(shape) * size, uint8_t{0xee});
  for (size_t i = 0; i < offsets.size(); ++i) memcpy(&block[offsets[i] * size], &contiguous[i * size], size);
  return block;
}

TestTensor strided(const TestTensor& contiguous, const Shape& shape, unsigned operands) {
  TestTensor tensor = contiguous;
  const auto [param, state] = tensor.dtypes;
  auto layouts = std::make_shared<cpu::Layouts>();
  if (operands & 1) {
    tensor.param = spread(contiguous.param, shape, size_of(param));
    layouts->param = shape.view();
  }
  if (operands & 2) {
    tensor.grad = spread(contiguous.grad, shape, size_of(param));
    layouts->grad = shape.view();
  }
  for (int k = 0; k < kMaxStates; ++k) {
    if (!(operands & 4) || tensor.states[k].empty()) continue;
    tensor.states[k] = spread(contiguous.states[k], shape, size_of(state));
    layouts->states[k] = shape.view();
  }
  tensor.layouts = layouts;
  return tensor;
}

TestList strided(const TestList& contiguous, unsigned operands) {
  TestList list;
  for (size_t i = 0; i < contiguous.size(); ++i) {
    list.push_back(strided(contiguous[i], sample_shapes()[i % sample_shapes().size()], operands));
  }
  return list;
}

void strided_cases(const Variant& variant) {
  Random random = {73};
  TestList start;
  for (const DtypePair dtypes : kPairs) {
    for (const Shape& shape : sample_shapes()) {
      const int64_t count = static_cast<int64_t>(offsets_of(shape).size());
      start.push_back(random_tensor(variant, dtypes, count, 0, random));
      start.back().param_index = static_cast<uint32_t>(start.size());
    }
  }
  for (const uint32_t threshold : {30000u, kKeepAll}) {
    const Call call = {variant, kDecayModes[1].scalars, threshold};
    TestList expected = start;
    run_scalar(call, expected);
    for (const auto& [name, operands] : kStrided) {
      const TestList strided_start = strided(start, operands), strided_expected = strided(expected, operands);
      for (const cpu::Isa isa : available_isas()) {
        run_case(text("strided lists: ", variant.name, ", ", name, ", threshold ", threshold, ", ", cpu::isa_name(isa)),
                 [&, all = operands == 7] {
                   TestList got = strided_start;
                   run_native(call, isa, got, all ? Deal::kThreads : Deal::kShuffledParts);
                   require_same(got, strided_expected);
                 });
      }
    }
  }
}

}  // namespace

void test_strided_lists() {
  // The engine knows no rule: one variant for each number of states.
  for (const char* name : {"sgd", "sgd nesterov", "adam", "amsgrad"}) strided_cases(variant_named(name));
}

}  // namespace lrt::test
