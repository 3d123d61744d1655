// Times the CPU kernels alone, without torch: `make bench-kernels` (options: BENCH="--only adam --rounds 15").
//
// All candidates of a row run in turn in every round; a figure is the median over the rounds, in nanoseconds an
// element.
#include "cpu/kernels.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/pairs.h"
#include "core/record.h"
#include "cpu/stage.h"
#include "plain.h"
#include "rules/adam.h"
#include "rules/sgd.h"

namespace lrt::bench {
namespace {

constexpr int64_t kInMemory = int64_t{1} << 24, kInCache = int64_t{1} << 14;
constexpr int64_t kAlign = 4096;

// A step to time: the rule with its flags, and the plain loop beside it, where there is one.
struct Work {
  const char* name;
  Dtype param, state;
  int states;
  const void* hyper;
  std::function<cpu::StepKernel(cpu::Isa)> kernel;
  std::function<Loop(cpu::Isa)> plain;
  std::optional<cpu::StoredAs> stored_as = {};  // where that is otherwise than it is stepped
};

template <class Record>
auto kernel_of(Flags<Record> flags, Dtype param, Dtype state) {
  return [=](cpu::Isa isa) {
    return cpu::with_isa(isa, [&](auto tag) { return cpu::find<decltype(tag), Record>(flags, param, state); });
  };
}

std::vector<Work> works() {
  static const AdamHyper adam = {0.9, 0.999, 1e-8};
  static const SGDHyper sgd = {0.9, 0.0};
  const Flags<AdamRule> plain_adam = {{false}}, amsgrad = {{true}};
  constexpr Dtype f32 = Dtype::kFloat, bf16 = Dtype::kBFloat16;
  const auto plain = [](auto member) { return [=](cpu::Isa isa) { return cpu::with_isa(isa, member); }; };
  const auto staged = [&](const char* name, cpu::StoredAs as) {
    return Work{name, as.param, as.state, 2, &adam, kernel_of<AdamRule>(plain_adam, f32, f32), nullptr, as};
  };
  const auto loop_of_adam = plain([](auto tag) -> Loop { return Plain<decltype(tag)>::template adam<false>; });
  return {
      {"Adam f32", f32, f32, 2, &adam, kernel_of<AdamRule>(plain_adam, f32, f32), loop_of_adam},
      {"AMSGrad f32", f32, f32, 3, &adam, kernel_of<AdamRule>(amsgrad, f32, f32),
       plain([](auto tag) -> Loop { return Plain<decltype(tag)>::template adam<true>; })},
      {"SGD+momentum f32", f32, f32, 1, &sgd, kernel_of<SGDRule>({{true, false}}, f32, f32),
       plain([](auto tag) -> Loop { return Plain<decltype(tag)>::sgd; })},
      {"Adam bf16, states f32", bf16, f32, 2, &adam, kernel_of<AdamRule>(plain_adam, bf16, f32), nullptr},
      {"Adam bf16, states bf16", bf16, bf16, 2, &adam, kernel_of<AdamRule>(plain_adam, bf16, bf16), nullptr},
      staged("Adam f32, gradients and mirror bf16", {.param = f32, .grad = bf16, .state = f32, .mirror = bf16}),
      staged("the same, changes", {.param = f32, .grad = bf16, .state = f32, .mirror = bf16, .changes = true}),
      staged("Adam f32, states bf16, stochastic",
             {.param = f32, .grad = f32, .state = bf16, .stochastic_states = true}),
      staged("Adam bf16, states f32, stochastic", {.param = bf16, .grad = bf16, .state = f32, .stochastic = true}),
      staged("Adam bf16, states f32, changes", {.param = bf16, .grad = bf16, .state = f32, .changes = true}),
      staged("Adam bf16, states bf16, stochastic",
             {.param = bf16, .grad = bf16, .state = bf16, .stochastic = true, .stochastic_states = true}),
      staged("Adam split, states f32", {.param = bf16, .grad = bf16, .state = f32, .split = true}),
  };
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char[], Free>;

Memory allocate(int64_t count, Dtype dtype, float value) {
  const size_t bytes = count * size_of(dtype);
  Memory memory(static_cast<char*>(std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign)));
  if (dtype == Dtype::kFloat) {
    std::fill_n(reinterpret_cast<float*>(memory.get()), count, value);
  } else {
    std::fill_n(reinterpret_cast<BFloat16*>(memory.get()), count, from_real<BFloat16>(value));
  }
  return memory;
}

// The tensors of one work.
struct Data {
  Data(const Work& work, int64_t elements)
      : count(elements),
        param(allocate(count, work.param, 0.5f)),
        grad(allocate(count, work.stored_as ? work.stored_as->grad : work.param, 0.25f)),
        beside(work.stored_as ? allocate(count, Dtype::kBFloat16, 0.0f) : nullptr),
        changes(work.stored_as ? allocate(count / 16, Dtype::kBFloat16, 0.0f) : nullptr) {
    for (int k = 0; k < work.states; ++k) states.push_back(allocate(count, work.state, 0.125f));
  }
  const int64_t count;
  const Memory param, grad, beside, changes;
  std::vector<Memory> states;
};

// What is timed: a run of tiles [begin, end) of the data.
using Run = std::function<void(int64_t begin, int64_t end)>;
struct Candidate {
  std::string name;
  Run run;
  std::vector<double> times = {};
};

// One step of the list that all candidates step.
cpu::ListStep list_of(const Work& work, uint32_t threshold) {
  return {work.hyper, {1e-3, 0.0, 1.0, false}, 0x1234, threshold};
}

Run run_of(cpu::StepKernel kernel, const Work& work, const Data& data, uint32_t threshold, cpu::Prefetch prefetch) {
  const cpu::ListStep list = list_of(work, threshold);
  const int64_t param_size = size_of(work.param), state_size = size_of(work.state);
  return [=, &data](int64_t begin, int64_t end) {
    const int64_t first = begin * kTile;
    cpu::Range range = {
        data.param.get() + first * param_size, data.grad.get() + first * param_size, {}, begin, (end - begin) * kTile};
    for (size_t k = 0; k < data.states.size(); ++k) range.states[k] = data.states[k].get() + first * state_size;
    kernel(list, {7, 0, 3, data.count, prefetch}, range);
  };
}

Run run_staged_of(cpu::StepKernel kernel, const Work& work, const Data& data, uint32_t threshold,
                  cpu::Prefetch prefetch) {
  const cpu::ListStep list = list_of(work, threshold);
  const cpu::StoredAs& as = *work.stored_as;
  const cpu::Stage stage = {.as = as,
                            .mirror = as.mirror == Dtype::kBFloat16 ? data.beside.get() : nullptr,
                            .low = as.split ? reinterpret_cast<int16_t*>(data.beside.get()) : nullptr,
                            .changes = as.changes ? reinterpret_cast<uint8_t*>(data.changes.get()) : nullptr,
                            .map = nullptr};
  return [=, &data](int64_t begin, int64_t end) {
    cpu::Range range = {data.param.get(), data.grad.get(), {}, begin, (end - begin) * kTile};
    for (size_t k = 0; k < data.states.size(); ++k) range.states[k] = data.states[k].get();
    range.stage = &stage;
    range.stage_begin = begin * kTile;
    kernel(list, {7, 0, 3, data.count, prefetch}, range);
  };
}

Run run_of(Loop loop, const Data& data) {
  return [=, &data](int64_t begin, int64_t end) {
    const int64_t first = begin * kTile * static_cast<int64_t>(sizeof(float));
    Tensors tensors = {data.param.get() + first, data.grad.get() + first, {}, (end - begin) * kTile};
    for (size_t k = 0; k < data.states.size(); ++k) tensors.states[k] = data.states[k].get() + first;
    loop(tensors);
  };
}

// Nanoseconds of `repeats` runs of all tiles, dealt out to the threads in equal parts.
double time(const Run& run, int64_t tiles, int threads, int repeats) {
  using Clock = std::chrono::steady_clock;
  std::barrier line(threads);
  std::vector<Clock::time_point> starts(threads), ends(threads);
  const auto part = [&](int thread) {
    const int64_t begin = tiles * thread / threads, end = tiles * (thread + 1) / threads;
    line.arrive_and_wait();
    starts[thread] = Clock::now();
    for (int r = 0; r < repeats; ++r) run(begin, end);
    ends[thread] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(part, thread);
  part(0);
  for (std::thread& other : others) other.join();
  const auto elapsed = *std::max_element(ends.begin(), ends.end()) - *std::min_element(starts.begin(), starts.end());
  return std::chrono::duration<double, std::nano>(elapsed).count() / repeats;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  std::string line, name = "unknown processor", family, model;
  while (std::getline(info, line)) {
    const auto value = [&] { return line.substr(line.find(':') + 2); };
    if (line.starts_with("model name")) name = value();
    if (line.starts_with("cpu family")) family = ", family " + value();
    if (line.starts_with("model\t")) model = ", model " + value();
    if (line.empty()) break;
  }
  return name + family + model + ", " + std::to_string(std::thread::hardware_concurrency()) + " logical cores";
}

struct Policy {
  std::string name;
  cpu::Prefetch prefetch;
};

std::vector<Policy> policies() {
  using cpu::Hint;
  std::vector<Policy> all = {{"none", {Hint::kNone, 0}}};
  for (const int bytes : {512, 1024, 2048}) {
    const std::string ahead = std::to_string(bytes);
    all.push_back({"first " + ahead, {Hint::kFirst, bytes}});
    all.push_back({"second " + ahead, {Hint::kSecond, bytes}});
  }
  all.push_back({"write 2048", {Hint::kWrite, 2048}});
  return all;
}

struct Options {
  std::string only;
  int rounds = 11;
};

void print_row(const Work& work, cpu::Isa isa, int threads, bool in_cache, const Options& options) {
  const std::string title = std::string(work.name) + ", " + cpu::isa_name(isa) + ", " + std::to_string(threads) +
                            (threads == 1 ? " thread, " : " threads, ") + (in_cache ? "in cache" : "in memory");
  if (title.find(options.only) == std::string::npos) return;
  const Data data(work, in_cache ? kInCache : kInMemory);
  std::vector<Candidate> candidates;
  if (work.plain) {
    const Loop copy = cpu::with_isa(isa, [](auto tag) -> Loop { return Plain<decltype(tag)>::copy; });
    candidates.push_back({"copy", run_of(copy, data)});
    candidates.push_back({"plain loop", run_of(work.plain(isa), data)});
  }
  const cpu::StepKernel kernel = work.kernel(isa);
  const std::vector<Policy> tried = in_cache ? std::vector<Policy>{policies()[0]} : policies();
  for (const uint32_t threshold : {kKeepAll, kKeepAll / 2}) {
    for (const Policy& policy : tried) {
      const std::string name = threshold == kKeepAll ? "unmasked" : "masked";
      if (threshold == kKeepAll && &policy != &tried[0]) continue;
      const auto run = work.stored_as ? run_staged_of : static_cast<decltype(&run_staged_of)>(run_of);
      candidates.push_back({name + ", " + policy.name, run(kernel, work, data, threshold, policy.prefetch)});
    }
  }
  const int64_t tiles = data.count / kTile;
  for (int round = -1; round < options.rounds; ++round) {  // the first warms up
    for (size_t i = 0; i < candidates.size(); ++i) {
      Candidate& candidate = candidates[(i + round + 1) % candidates.size()];
      const double taken = time(candidate.run, tiles, threads, in_cache ? 200 : 1);
      if (round >= 0) candidate.times.push_back(taken);
    }
  }
  std::printf("\n%s\n", title.c_str());
  for (const Candidate& candidate : candidates) {
    std::printf("  %-24s %7.3f ns\n", candidate.name.c_str(),
                median(candidate.times) / static_cast<double>(data.count));
  }
}

}  // namespace
}  // namespace lrt::bench

int main(int argc, char** argv) {
  using namespace lrt;
  bench::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--only") == 0) options.only = argv[i + 1];
    if (std::strcmp(argv[i], "--rounds") == 0) options.rounds = std::atoi(argv[i + 1]);
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("%s\n", bench::processor().c_str());
  for (const bench::Work& work : bench::works()) {
    for (const cpu::Isa isa : {cpu::Isa::kAvx512, cpu::Isa::kAvx2, cpu::Isa::kBaseline}) {
      if (!cpu::supported(isa)) continue;
      bench::print_row(work, isa, 1, true, options);
      for (const int threads : {1, 2}) bench::print_row(work, isa, threads, false, options);
    }
  }
}
