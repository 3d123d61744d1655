// Steps on strided operands equal steps on contiguous ones, element by element, and leave the gaps alone; with the
// gradient as it is, and centralized. Lists mix layouts and dtypes; each case makes other operands strided.
#include <cstring>

#include "check.h"
#include "lists.h"
#include "shapes.h"

namespace lrt::test {
namespace {

// The gap between elements of each operand, as a factor on the shape's strides; 0: contiguous.
constexpr struct Operands {
  const char* name;
  int64_t param, grad, states[kMaxStates];
} kStrided[] = {{"none", 0, 0, {0, 0, 0}},
                {"param", 1, 0, {0, 0, 0}},
                {"grad", 0, 1, {0, 0, 0}},
                {"states", 0, 0, {1, 1, 1}},
                {"param and one state", 1, 0, {0, 1, 0}},
                {"all alike", 1, 1, {1, 1, 1}},
                {"each unlike the one before", 1, 2, {1, 3, 2}}};

Bytes spread(const Bytes& contiguous, const Shape& shape, int64_t size) {
  const std::vector<int64_t> offsets = offsets_of(shape);
  Bytes block(extent_of(shape) * size, uint8_t{0xee});
  for (size_t i = 0; i < offsets.size(); ++i) memcpy(&block[offsets[i] * size], &contiguous[i * size], size);
  return block;
}

void make_strided(Bytes& bytes, std::optional<cpu::StridedView>& view, Shape shape, int64_t gap, Dtype dtype) {
  if (gap == 0) return;
  for (int64_t& stride : shape.strides) stride *= gap;
  bytes = spread(bytes, shape, size_of(dtype));
  view = shape.view();
}

TestTensor strided(const TestTensor& contiguous, const Shape& shape, const Operands& operands) {
  TestTensor tensor = contiguous;
  const auto [param, state] = tensor.dtypes;
  auto layouts = std::make_shared<cpu::Layouts>();
  make_strided(tensor.param, layouts->param, shape, operands.param, param);
  make_strided(tensor.grad, layouts->grad, shape, operands.grad, param);
  for (int k = 0; k < kMaxStates; ++k) {
    if (!tensor.states[k].empty()) make_strided(tensor.states[k], layouts->states[k], shape, operands.states[k], state);
  }
  tensor.layouts = layouts;
  return tensor;
}

TestList strided(const TestList& contiguous, const Operands& operands) {
  TestList list;
  for (size_t i = 0; i < contiguous.size(); ++i) {
    list.push_back(strided(contiguous[i], sample_shapes()[i % sample_shapes().size()], operands));
  }
  return list;
}

// What the scalar loop makes of a list, whose gradients stay as they are.
TestList stepped(const Call& call, const TestList& start) {
  TestList list = start;
  for (TestTensor& tensor : list) centralize(tensor);
  run_scalar(call, list);
  for (size_t i = 0; i < list.size(); ++i) list[i].grad = start[i].grad;
  return list;
}

void strided_cases(const Variant& variant, bool centralized, bool shards) {
  Random random = {73};
  TestList start;
  for (const DtypePair dtypes : kPairs) {
    for (const Shape& shape : sample_shapes()) {
      const int64_t count = static_cast<int64_t>(offsets_of(shape).size());
      start.push_back(random_tensor(variant, dtypes, count, 0, random));
      start.back().param_index = static_cast<uint32_t>(start.size());
      if (centralized && shape.sizes.size() > 1 && count > 0) start.back().slice_length = count / shape.sizes[0];
    }
  }
  if (shards) make_shards(start);
  for (const uint32_t threshold : {30000u, kKeepAll}) {
    const Call call = {variant, kDecayModes[1].scalars, threshold};
    Lazy<TestList> expected([&] { return stepped(call, start); });
    for (const Operands& operands : kStrided) {
      const TestList strided_start = strided(start, operands);
      Lazy<TestList> strided_expected([&] { return strided(*expected, operands); });
      const std::string of = text(variant.name, centralized ? " centralized" : "", shards ? " of shards" : "", ", ",
                                  operands.name, ", threshold ", threshold, ", ");
      for (const cpu::Isa isa : available_isas()) {
        run_case("strided lists: " + of + cpu::isa_name(isa), [&] {
          for (const Deal deal : {Deal::kShuffledParts, Deal::kThreads}) {
            TestList got = strided_start;
            run_native(call, isa, got, deal);
            require_same(got, *strided_expected);
          }
        });
      }
    }
  }
}

}  // namespace

void test_strided_lists() {
  // The engine knows no rule: one variant for each number of states.
  for (const char* name : {"sgd", "sgd nesterov", "adam", "amsgrad"}) {
    strided_cases(variant_named(name), false, false);
  }
  for (const char* name : {"sgd", "amsgrad"}) strided_cases(variant_named(name), true, false);
  for (const bool centralized : {false, true}) strided_cases(variant_named("amsgrad"), centralized, true);
}

}  // namespace lrt::test
