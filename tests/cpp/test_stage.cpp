// Tensors that are stored otherwise than they are stepped: the kernels against a loop over single elements, which
// brings each to float32, has the scalar kernel step it, and stores it. Blocks of exactly their sizes, as in lists.h.
#include <string>
#include <vector>

#include "check.h"
#include "core/rounding.h"
#include "cpu/stored_kernel.h"
#include "lists.h"
#include "variants.h"

namespace lrt::test {
namespace {

struct Storage {
  std::string name;
  cpu::StoredAs as;
};

// Some of those that are staged in buffers, and all that are stepped row by row.
std::vector<Storage> storages() {
  constexpr Dtype f32 = Dtype::kFloat, bf16 = Dtype::kBFloat16, f16 = Dtype::kHalf;
  std::vector<Storage> all = {
      {"offload, fp16", {.param = f32, .grad = f16, .state = f32, .mirror = f16, .changes = true}},
      {"narrow states", {.param = f32, .grad = f32, .state = bf16, .changes = true, .stochastic_states = true}},
      {"split", {.param = bf16, .grad = bf16, .state = f32, .split = true, .changes = true}},
      {"stochastic bf16",
       {.param = bf16, .grad = f32, .state = bf16, .changes = true, .stochastic = true, .stochastic_states = true}},
      {"stochastic fp16",
       {.param = f16, .grad = f16, .state = f16, .changes = true, .stochastic = true, .stochastic_states = true}},
  };
  for (const cpu::StoredAs& as : cpu::kByRows) all.push_back({text("by rows ", all.size()), as});
  return all;
}

bool has_mirror(const cpu::StoredAs& as) { return as.mirror != Dtype::kFloat; }

// One tensor, as it is stored.
struct Stored {
  Bytes param, grad, states[kMaxStates];
  std::vector<uint16_t> mirror;
  std::vector<int16_t> low;
  std::vector<uint8_t> changes;
};

Bytes random_bytes(Dtype dtype, int64_t count, double low, Random& random) {
  Bytes bytes(count * size_of(dtype));
  for (int64_t i = 0; i < count; ++i) store(dtype, low + 0.2 * random.uniform(), &bytes[i * size_of(dtype)]);
  return bytes;
}

Stored random_stored(const Variant& variant, const Storage& storage, int64_t count) {
  Random random = {static_cast<uint64_t>(count) + 7};
  const cpu::StoredAs& as = storage.as;
  Stored stored = {
      random_bytes(as.param, count, -0.1, random), random_bytes(as.grad, count, -0.1, random), {}, {}, {}, {}};
  for (int k = 0; k < variant.states; ++k) stored.states[k] = random_bytes(as.state, count, 0.5, random);
  if (has_mirror(as)) stored.mirror.assign(count, 0x1234);
  for (int64_t i = 0; as.split && i < count; ++i) stored.low.push_back(static_cast<int16_t>(random.next()));
  if (as.changes) stored.changes.assign((count + 7) / 8, 0);
  return stored;
}

float real_at(Dtype dtype, const Bytes& bytes, int64_t i) {
  return with_dtype(dtype, [&]<class Of>() {
    Of value;
    std::memcpy(&value, &bytes[i * sizeof(Of)], sizeof(Of));
    return static_cast<float>(to_real(value));
  });
}

// Stores one number as 16 bits, rounded by an element's word or, without one, to nearest; whether they are others.
template <class Of>
bool put(float value, const uint32_t* word, uint32_t multiplier, uint8_t* to) {
  const Of stored = word ? stochastically_rounded<Of>(value, rounding_bits(*word, multiplier)) : from_real<Of>(value);
  const bool other = std::memcmp(to, &stored, sizeof(Of)) != 0;
  std::memcpy(to, &stored, sizeof(Of));
  return other;
}
bool put(Dtype dtype, float value, const uint32_t* word, uint32_t multiplier, uint8_t* to) {
  return dtype == Dtype::kHalf ? put<Half>(value, word, multiplier, to) : put<BFloat16>(value, word, multiplier, to);
}

const cpu::TensorStep kStep = {.count = 3, .scalar = 0.625, .param_index = 5, .numel = 0};

// The step of every element by itself.
void expect(const Variant& variant, const cpu::StoredAs& storage, const cpu::ListStep& list, int64_t count,
            Stored& own) {
  const KeepStream key = keep_stream(list, kStep);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t keep = keep_bits(key, i) < list.threshold ? -1 : 0;
    const auto [half, half_row] = element_word(key, i);
    const uint32_t word = rounding_word(half, half_row);
    const float stored = real_at(storage.param, own.param, i);
    float param = storage.split ? joined(from_real<BFloat16>(stored), own.low[i]) : stored;
    const float grad = real_at(storage.grad, own.grad, i), before = param;
    float states[kMaxStates] = {};
    cpu::Range range = {.param = &param, .grad = &grad, .states = {}, .first_tile = 0, .count = 1};
    for (int k = 0; k < variant.states; ++k) {
      states[k] = real_at(storage.state, own.states[k], i);
      range.states[k] = &states[k];
    }
    range.keeps = &keep;
    variant.scalar(Dtype::kFloat, Dtype::kFloat)(list, kStep, range);
    for (int k = 0; k < variant.states; ++k) {
      uint8_t* const to = &own.states[k][i * size_of(storage.state)];
      if (storage.state == Dtype::kFloat) {
        std::memcpy(to, &states[k], sizeof(float));
      } else {
        put(storage.state, states[k], storage.stochastic_states ? &word : nullptr, kStateMultipliers[k], to);
      }
    }
    if (!keep) continue;
    uint8_t* const to = &own.param[i * size_of(storage.param)];
    bool changed = bit_cast<uint32_t>(param) != bit_cast<uint32_t>(before);
    if (storage.split) {
      const Split halves = split(param);
      changed = std::memcmp(to, &halves.high, 2) != 0;
      std::memcpy(to, &halves.high, 2);
      own.low[i] = halves.low;
    } else if (storage.param == Dtype::kFloat) {
      std::memcpy(to, &param, sizeof(float));
    } else {
      changed = put(storage.param, param, storage.stochastic ? &word : nullptr, kParamMultiplier, to);
    }
    if (has_mirror(storage)) {
      changed = put(storage.mirror, param, nullptr, 0, reinterpret_cast<uint8_t*>(&own.mirror[i]));
    }
    if (storage.changes) own.changes[i / 8] |= static_cast<uint8_t>(changed << i % 8);
  }
}

void run(const Variant& variant, const cpu::StoredAs& as, cpu::Isa isa, const cpu::ListStep& list, int64_t count,
         Stored& own) {
  const cpu::Stage stage = {.as = as,
                            .mirror = has_mirror(as) ? own.mirror.data() : nullptr,
                            .low = as.split ? own.low.data() : nullptr,
                            .changes = as.changes ? own.changes.data() : nullptr,
                            .map = nullptr};
  cpu::Range range = {
      .param = own.param.data(), .grad = own.grad.data(), .states = {}, .first_tile = 0, .count = count};
  for (int k = 0; k < variant.states; ++k) range.states[k] = own.states[k].data();
  range.stage = &stage;
  variant.native(isa, Dtype::kFloat, Dtype::kFloat)(list, kStep, range);
}

}  // namespace

void test_stage() {
  for (const Variant& variant : variants()) {
    if (variant.slots != 1) continue;  // a ring
    for (const Storage& storage : storages()) {
      for (const int64_t count : {1, 63, 64, 65, 513, 1300}) {
        run_case(text(variant.name, ", ", storage.name, ", ", count, " elements"), [&] {
          const cpu::ListStep list = {.hyper = variant.hyper,
                                      .scalars = {0.0123, 0.07, -0.75, false},
                                      .seed = 0x123456789abcdef0u,
                                      .threshold = keep_threshold(0.5)};
          Stored expected = random_stored(variant, storage, count);
          expect(variant, storage.as, list, count, expected);
          for (const cpu::Isa isa : available_isas()) {
            Stored got = random_stored(variant, storage, count);
            run(variant, storage.as, isa, list, count, got);
            const char* const name = cpu::isa_name(isa);
            require(got.param == expected.param, name, ": other parameters");
            for (int k = 0; k < variant.states; ++k) require(got.states[k] == expected.states[k], name, ": state ", k);
            require(got.mirror == expected.mirror && got.low == expected.low, name, ": other mirrors or halves");
            require(got.changes == expected.changes, name, ": other changes");
          }
        });
      }
    }
  }
}

}  // namespace lrt::test
