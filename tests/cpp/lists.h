// Lists of tensors on the heap, run through ListWork or through the scalar loop, and compared byte for byte.
// Every buffer is a block of exactly its size, so that AddressSanitizer sees one element too many.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/engine.h"
#include "variants.h"

namespace lrt::test {

using Bytes = std::vector<uint8_t>;

struct TestTensor {
  DtypePair dtypes;
  int64_t count, offset;  // elements; `offset` of them come before the tensor in each block
  double step;
  uint32_t param_index;
  Bytes param, grad, states[kMaxStates];
  std::shared_ptr<const cpu::Layouts> layouts;
  int64_t slice_length = 0;  // of the gradient, if it is to be centralized
  IndexMap map = {};         // of a shard
  double scalar = 0.625;     // of a rule that has one, at this step
};
using TestList = std::vector<TestTensor>;

// One call of a step op.
struct Call {
  const Variant& variant;
  StepScalars scalars;
  uint32_t threshold;
  uint64_t seed = 0x123456789abcdef0u;
};

// How a list's tiles are dealt out.
enum class Deal { kWhole, kShuffledParts, kSingleTilesBackwards, kThreads };

struct DecayMode {
  const char* name;
  StepScalars scalars;
};
// lr, weight_decay, grad_factor, decoupled; grad_factor is that of maximize with a gradient weight.
constexpr DecayMode kDecayModes[] = {{"no decay", {0.0123, 0.0, -0.75, true}},
                                     {"coupled decay", {0.0123, 0.07, -0.75, false}},
                                     {"decoupled decay", {0.0123, 0.07, -0.75, true}}};

// A tensor of random finite values over many binades; states as the variant admits them.
TestTensor random_tensor(const Variant& variant, DtypePair dtypes, int64_t count, int64_t offset, Random& random);
// Every dtype pair x size x offset, in that order, with step counts and parameter indices of their own.
TestList sample_list(const Variant& variant);

// Makes each tensor a shard, with a map of its own as far as there are enough.
void make_shards(TestList& list);

// Takes the means of its slices off a contiguous gradient, element by element.
void centralize(TestTensor& tensor);

cpu::ListWork work_of(const Call& call, cpu::Isa isa, TestList& list);
void run_native(const Call& call, cpu::Isa isa, TestList& list, Deal deal = Deal::kWhole);
void run_scalar(const Call& call, TestList& list);

// Throws, naming the first difference, unless every byte of every block is the same.
void require_same(const TestList& got, const TestList& expected);

}  // namespace lrt::test
