// Lists of tensors for the tests of kernels (see lists.h).
#include "lists.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "check.h"

namespace lrt::test {
namespace {

// The empty tensor comes first, between and last.
constexpr int64_t kSizes[] = {0, 1, 3, 63, 64, 65, 0, 511, 512, 513, 1000, 4097, 0};
constexpr double kSteps[] = {1, 2, 7, 1000, 16777217};  // the last is no float32

void fill(Bytes& bytes, Dtype dtype, const std::function<double()>& value) {
  const int64_t size = size_of(dtype);
  for (size_t at = 0; at < bytes.size(); at += size) store(dtype, value(), bytes.data() + at);
}

uint8_t* start(Bytes& bytes, int64_t offset, Dtype dtype) { return bytes.data() + offset * size_of(dtype); }

cpu::Range range_of(const Variant& variant, TestTensor& tensor) {
  const auto [param, state] = tensor.dtypes;
  cpu::Range range = {
      start(tensor.param, tensor.offset, param), start(tensor.grad, tensor.offset, param), {}, 0, tensor.count};
  for (int k = 0; k < variant.states; ++k) range.states[k] = start(tensor.states[k], tensor.offset, state);
  return range;
}

cpu::ListStep list_step(const Call& call) { return {call.variant.hyper, call.scalars, call.seed, call.threshold}; }

cpu::TensorStep tensor_step(const TestTensor& tensor) {
  return {tensor.step, tensor.scalar, tensor.param_index, tensor.count};
}

struct Part {
  int64_t begin, end;
};

std::vector<Part> parts_of(int64_t tiles, Deal deal) {
  Random random = {static_cast<uint64_t>(tiles)};
  std::vector<Part> parts;
  for (int64_t begin = 0; begin < tiles;) {
    const int64_t most = deal == Deal::kWhole ? tiles : deal == Deal::kSingleTilesBackwards ? 1 : 1 + random.below(20);
    parts.push_back({begin, std::min(begin + most, tiles)});
    begin = parts.back().end;
  }
  if (deal == Deal::kSingleTilesBackwards) std::reverse(parts.begin(), parts.end());
  if (deal == Deal::kShuffledParts) {
    for (size_t i = parts.size(); i > 1; --i) std::swap(parts[i - 1], parts[random.below(i)]);
  }
  return parts;
}

void run_on_threads(const cpu::ListWork& work, const std::vector<Part>& parts) {
  constexpr size_t count = 4;
  std::vector<std::thread> threads;
  for (size_t first = 0; first < count; ++first) {
    threads.emplace_back([&, first] {
      for (size_t i = first; i < parts.size(); i += count) work.run(parts[i].begin, parts[i].end);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::string hex(const Bytes& bytes, size_t at, int64_t size) {
  std::ostringstream out;
  out << "0x" << std::hex;
  for (int64_t b = size; b-- > 0;) {  // little-endian
    const int value = bytes[at + b];
    out << value / 16 << value % 16;
  }
  return out.str();
}

void require_same_bytes(const Bytes& got, const Bytes& expected, int64_t size, const TestTensor& tensor,
                        const std::string& name) {
  if (got == expected) return;
  require(got.size() == expected.size(), name, ": sizes differ");
  const size_t byte = std::mismatch(got.begin(), got.end(), expected.begin()).first - got.begin();
  const size_t at = byte / size * size;
  require(false, dtype_name(tensor.dtypes.param), "/", dtype_name(tensor.dtypes.state), " tensor of ", tensor.count,
          " elements, offset ", tensor.offset, ", step ", tensor.step, ": ", name, " block, element ", at / size,
          " is ", hex(got, at, size), ", not ", hex(expected, at, size));
}

}  // namespace

namespace {

template <class Param>
void centralize_as(Param* grads, int64_t count, int64_t length) {
  const size_t partials = length < 64 ? 1 : std::min<int64_t>(16 * ((length + 1023) / 1024), 4096);
  for (Param* slice = grads; slice < grads + count; slice += length) {
    std::vector<Real<Param>> sums(partials, 0);
    for (int64_t i = 0; i < length; ++i) sums[i % partials] += to_real(slice[i]);
    const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    const auto mean = static_cast<Real<Param>>(sum / static_cast<double>(length));
    for (int64_t i = 0; i < length; ++i) slice[i] = from_real<Param>(to_real(slice[i]) - mean);
  }
}

}  // namespace

void centralize(TestTensor& tensor) {
  if (tensor.slice_length == 0) return;
  uint8_t* const grads = start(tensor.grad, tensor.offset, tensor.dtypes.param);
  with_dtype(tensor.dtypes.param,
             [&]<class Param>() { centralize_as(reinterpret_cast<Param*>(grads), tensor.count, tensor.slice_length); });
}

TestTensor random_tensor(const Variant& variant, DtypePair dtypes, int64_t count, int64_t offset, Random& random) {
  const size_t param_bytes = (offset + count) * size_of(dtypes.param);
  TestTensor tensor = {dtypes, count, offset, 1, 0, Bytes(param_bytes), Bytes(param_bytes), {}, nullptr, 0};
  fill(tensor.param, dtypes.param, [&] { return random.sign() * std::exp2(24 * random.uniform() - 20); });
  fill(tensor.grad, dtypes.param, [&] { return random.sign() * std::exp2(30 * random.uniform() - 26); });
  for (int k = 0; k < variant.states; ++k) {
    // In [0.5, 0.7): no mean exceeds the root of a mean of squares, so that a centered variance stays positive.
    const bool variance = variant.variances >> k & 1;
    tensor.states[k].resize((offset + variant.slots * count) * size_of(dtypes.state));
    tensor.states[k].shrink_to_fit();
    fill(tensor.states[k], dtypes.state,
         [&] { return (variance ? 1 : random.sign()) * (0.5 + 0.2 * random.uniform()); });
  }
  return tensor;
}

TestList sample_list(const Variant& variant) {
  Random random = {41};
  TestList list;
  for (const DtypePair dtypes : kPairs) {
    for (const int64_t offset : {0, 1}) {
      for (const int64_t size : kSizes) {
        list.push_back(random_tensor(variant, dtypes, size, offset, random));
        list.back().step = kSteps[list.size() % std::size(kSteps)];
        list.back().param_index = static_cast<uint32_t>(3 * list.size());
      }
    }
  }
  return list;
}

void make_shards(TestList& list) {
  // Single runs, on a tile and off it; short ones, within a tile and across its end; long ones; far elements.
  constexpr int64_t whole = 1 << 14, far = int64_t{1} << 33;
  constexpr IndexMap maps[] = {{1, whole, 0},
                               {512, whole, 0},
                               {0, 1, 2},
                               {5, 7, 11},
                               {9, 65, 1000},
                               {4096, 512, 5120},
                               {513, 2500, 4000},
                               {511, 4097, 4097},
                               {3, 1, 700},
                               {kMaxElements - whole, whole, 0},
                               {4 * far - 700, 2100, far}};
  for (size_t i = 0; i < list.size(); ++i) list[i].map = maps[i % std::size(maps)];
}

cpu::ListWork work_of(const Call& call, cpu::Isa isa, TestList& list) {
  cpu::ListWork work = cpu::with_isa(isa, [&](auto tag) -> cpu::ListWork {
    return {.step = list_step(call),
            .tensors = {},
            .slice_functions = &cpu::slice_functions<decltype(tag)>(),
            .step_slabs = cpu::step_slabs<decltype(tag)>,
            .shard_functions = &cpu::kShardFunctions<decltype(tag)>};
  });
  for (TestTensor& tensor : list) {
    const auto [param, state] = tensor.dtypes;
    const cpu::StepKernel kernel = call.variant.native(isa, param, state);
    require(kernel != nullptr, "no kernel for ", dtype_name(param), "/", dtype_name(state));
    work.add({.kernel = kernel,
              .step = tensor_step(tensor),
              .whole = range_of(call.variant, tensor),
              .layouts = tensor.layouts.get(),
              .stage = nullptr,
              .param_size = static_cast<uint8_t>(size_of(param)),
              .state_size = static_cast<uint8_t>(size_of(state)),
              .dtype = param,
              .slab = tensor.layouts && call.variant.slots == 1 ? slab_of(*tensor.layouts, call.variant.states)
                                                                : cpu::StridedView::Slab(),
              .slice_length = tensor.slice_length,
              .first_tile = 0,
              .map = {}});
    work.tensors.back().set_map(tensor.map);
  }
  return work;
}

void run_native(const Call& call, cpu::Isa isa, TestList& list, Deal deal) {
  const cpu::ListWork work = work_of(call, isa, list);
  const std::vector<Part> parts = parts_of(work.tiles, deal);
  if (deal == Deal::kThreads) return run_on_threads(work, parts);
  for (const Part& part : parts) work.run(part.begin, part.end);
}

void run_scalar(const Call& call, TestList& list) {
  for (TestTensor& tensor : list) {
    const cpu::StepKernel kernel = call.variant.scalar(tensor.dtypes.param, tensor.dtypes.state);
    cpu::Range range = range_of(call.variant, tensor);
    std::vector<int32_t> keeps;
    if (!tensor.map.is_whole()) {
      const auto [base, run, pitch] = tensor.map;
      const KeepStream stream = keep_stream(list_step(call), tensor_step(tensor));
      for (int64_t i = 0; i < tensor.count; ++i) {
        keeps.push_back(keep_bits(stream, base + i / run * pitch + i % run) < call.threshold ? -1 : 0);
      }
      range.keeps = keeps.data();
    }
    kernel(list_step(call), tensor_step(tensor), range);
  }
}

void require_same(const TestList& got, const TestList& expected) {
  require(got.size() == expected.size(), "lists of different lengths");
  for (size_t i = 0; i < got.size(); ++i) {
    const TestTensor &a = got[i], &b = expected[i];
    const int64_t param_size = size_of(a.dtypes.param), state_size = size_of(a.dtypes.state);
    require_same_bytes(a.param, b.param, param_size, a, "param");
    require_same_bytes(a.grad, b.grad, param_size, a, "grad");
    for (int k = 0; k < kMaxStates; ++k) {
      require_same_bytes(a.states[k], b.states[k], state_size, a, text("state ", k));
    }
  }
}

}  // namespace lrt::test
