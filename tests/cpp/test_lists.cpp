// Every kernel of every instruction set against the scalar loop, bit for bit, over mixed lists and however the tiles
// are dealt out; elements far into a parameter; what a dropped element and an absent decay leave alone.
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "lists.h"

namespace lrt::test {
namespace {

using cpu::Isa;

constexpr uint32_t kThresholds[] = {0, 1, 32768, kKeepAll};

void kernels_match(const Call& call, Isa isa, const TestList& start, const TestList& expected, Deal other) {
  for (const Deal deal : {Deal::kWhole, other}) {
    TestList got = start;
    run_native(call, isa, got, deal);
    require_same(got, expected);
  }
}

void list_cases(const Variant& variant, bool shards) {
  constexpr Deal deals[] = {Deal::kShuffledParts, Deal::kSingleTilesBackwards, Deal::kThreads};
  TestList start = sample_list(variant);
  if (shards) make_shards(start);
  int combination = 0;
  for (const uint32_t threshold : kThresholds) {
    for (const DecayMode& mode : kDecayModes) {
      const Call call = {variant, mode.scalars, threshold};
      Lazy<TestList> expected([&] {
        TestList list = start;
        run_scalar(call, list);
        return list;
      });
      // Over the thresholds, each decay mode meets each way to deal; so does each instruction set.
      const int turn = combination % 3 + combination / 3;
      ++combination;
      for (const Isa isa : available_isas()) {
        run_case(text("lists: ", variant.name, shards ? " of shards" : "", ", threshold ", threshold, ", ", mode.name,
                      ", ", cpu::isa_name(isa)),
                 [&] { kernels_match(call, isa, start, *expected, deals[(turn + static_cast<int>(isa)) % 3]); });
      }
    }
  }
}

// Ranges whose Philox calls cross 2**32, and the last whole tiles the counter holds.
void far_elements(const Variant& variant, Isa isa) {
  Random random = {43};
  for (const int64_t first_tile : {(int64_t{1} << 26) - 2, (int64_t{1} << 50) - 4}) {
    for (const DtypePair dtypes : kPairs) {
      const TestTensor start = random_tensor(variant, dtypes, 3 * kTile - 5, 0, random);
      const cpu::ListStep list = {variant.hyper, kDecayModes[1].scalars, random.next(), 20000};
      const cpu::TensorStep step = {7, 0.625, 11, start.count};
      TestList got = {start}, expected = {start};
      const auto run = [&](cpu::StepKernel kernel, TestTensor& tensor) {
        cpu::Range range = {tensor.param.data(), tensor.grad.data(), {}, first_tile, tensor.count};
        for (int k = 0; k < variant.states; ++k) range.states[k] = tensor.states[k].data();
        kernel(list, step, range);
      };
      run(variant.native(isa, dtypes.param, dtypes.state), got[0]);
      run(variant.scalar(dtypes.param, dtypes.state), expected[0]);
      require_same(got, expected);
    }
  }
}

uint64_t pattern(Dtype dtype, const uint8_t* at) {
  uint64_t bits = 0;
  memcpy(&bits, at, size_of(dtype));
  return bits;
}

struct Specials {
  uint64_t signalling_nan, infinity;
};
Specials specials_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat: return {0xff800001u, 0x7f800000u};
    case Dtype::kDouble: return {0xfff0000000000001u, 0x7ff0000000000000u};
    case Dtype::kBFloat16: return {0xff81u, 0x7f80u};
    case Dtype::kHalf: return {0xfc01u, 0x7c00u};
  }
  return {};
}

void fill_pattern(Bytes& bytes, Dtype dtype, uint64_t bits) {
  for (size_t at = 0; at < bytes.size(); at += size_of(dtype)) memcpy(bytes.data() + at, &bits, size_of(dtype));
}

bool is_nan(Dtype dtype, uint64_t bits) {
  const uint64_t infinity = specials_of(dtype).infinity;
  return (bits & (infinity | (infinity - 1))) > infinity;  // without the sign
}

// Dropped: the very bits, a signalling NaN's too, though the gradient is NaN. Kept: NaN.
void dropped_keep_their_bits(const Variant& variant, Isa isa, uint32_t threshold) {
  Random random = {47};
  for (const DtypePair dtypes : kPairs) {
    const auto [param, state] = dtypes;
    const uint64_t planted = specials_of(param).signalling_nan;
    TestList list = {random_tensor(variant, dtypes, 1100, 1, random)};
    TestTensor& tensor = list[0];
    fill_pattern(tensor.param, param, planted);
    fill_pattern(tensor.grad, param, planted);
    const Call call = {variant, kDecayModes[1].scalars, threshold};
    run_native(call, isa, list);
    for (int64_t i = 0; i < tensor.count; ++i) {
      const int64_t at = tensor.offset + i;
      const bool keep = keep_bits({call.seed, 1, 0}, i) < threshold;
      const uint64_t bits = pattern(param, tensor.param.data() + at * size_of(param));
      require(keep ? is_nan(param, bits) : bits == planted, dtype_name(param), " element ", i, " is ", bits);
      for (int k = 0; k < variant.states; ++k) {
        const uint64_t advanced = pattern(state, tensor.states[k].data() + at * size_of(state));
        require(is_nan(state, advanced) || (variant.name == "amsgrad" && k == 2), "state ", k, " was not updated");
      }
    }
  }
}

// A decay of 0 is not applied: 0 * inf would make NaN of an infinite parameter.
void no_decay_leaves_infinity(const Variant& variant, Isa isa, bool decoupled) {
  Random random = {53};
  for (const DtypePair dtypes : kPairs) {
    for (const uint32_t threshold : {20000u, kKeepAll}) {
      TestList list = {random_tensor(variant, dtypes, 1100, 0, random)};
      fill_pattern(list[0].param, dtypes.param, specials_of(dtypes.param).infinity);
      const Bytes before = list[0].param;
      run_native({variant, {0.0123, 0.0, 1.0, decoupled}, threshold}, isa, list);
      require(list[0].param == before, dtype_name(dtypes.param), " parameter no longer infinite");
    }
  }
}

void missing_pairs(const Variant& variant, Isa isa) {
  constexpr Dtype all[] = {Dtype::kFloat, Dtype::kDouble, Dtype::kBFloat16, Dtype::kHalf};
  for (const Dtype param : all) {
    for (const Dtype state : all) {
      bool offered = false;
      for (const DtypePair pair : kPairs) offered = offered || (pair.param == param && pair.state == state);
      const bool found = variant.native(isa, param, state) != nullptr;
      require(found == offered, dtype_name(param), "/", dtype_name(state), found ? " offered" : " missing");
    }
  }
}

void only_empty_tensors(const Variant& variant, Isa isa) {
  Random random = {59};
  TestList list;
  for (const int64_t offset : {0, 1, 0}) list.push_back(random_tensor(variant, kPairs[0], 0, offset, random));
  require(work_of({variant, kDecayModes[0].scalars, 1}, isa, list).tiles == 0, "tiles without elements");
}

void unknown_isa_is_named() {
  setenv("LRTRICKS_CPU_ISA", "sse9", 1);
  try {
    cpu::active_isa();
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    require(what.find("sse9") != std::string::npos && what.find("baseline") != std::string::npos, what);
    return;
  }
  require(false, "accepted");
}

}  // namespace

void test_lists() {
  run_case("isa: an unknown name is refused", unknown_isa_is_named);
  for (const Variant& variant : variants()) {
    for (const bool shards : {false, true}) list_cases(variant, shards);
    for (const Isa isa : available_isas()) {
      const std::string of = text(variant.name, ", ", cpu::isa_name(isa));
      run_case("pairs: offered or null, " + of, [&] { missing_pairs(variant, isa); });
      run_case("empty tensors: no tiles, " + of, [&] { only_empty_tensors(variant, isa); });
      run_case("far elements: " + of, [&] { far_elements(variant, isa); });
      for (const uint32_t threshold : kThresholds) {
        run_case(text("dropped keep their bits: threshold ", threshold, ", ", of),
                 [&] { dropped_keep_their_bits(variant, isa, threshold); });
      }
      for (const bool decoupled : {false, true}) {
        run_case(text("zero decay: decoupled ", decoupled, ", ", of),
                 [&] { no_decay_leaves_infinity(variant, isa, decoupled); });
      }
    }
  }
}

}  // namespace lrt::test
