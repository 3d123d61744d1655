// The launchers of csrc/cuda, compiled for the host, as a Python module. Addresses are integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/keep.h"
#include "core/slice_mean.h"
#include "cuda/step.h"
#include "cuda/upload.h"
#include "rules/all.h"
#if defined(LRT_CUDA_ON_HOST)
#include "cuda/launch.h"
#else
namespace lrt::cuda {
extern int64_t launches;  // so far; tests/ptx/runtime.cpp
}
#endif

namespace {

using namespace lrt;

const void* address(uint64_t value) { return reinterpret_cast<const void*>(value); }

Scalar number(const pybind11::tuple& of) {  // (value, address, is_double)
  return {of[0].cast<double>(), address(of[1].cast<uint64_t>()), of[2].cast<bool>()};
}

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

// What a list of numbers and of the ops' own flags says, in the order of the record.
template <class Record>
const char* launch(const cuda::Step& call, const std::vector<double>& numbers, const std::vector<bool>& arguments,
                   int64_t state_mask) {
  if (numbers.size() != Record::kHypers.size) throw std::runtime_error("other hyper-parameters than the rule's");
  const auto hyper = [&]<size_t... K>(std::index_sequence<K...>) {
    using Number = decltype([] {
      if constexpr (requires(typename Record::Hyper h) { h.window; })
        return int64_t();
      else
        return double();
    }());
    return typename Record::Hyper{static_cast<Number>(numbers[K])...};
  }(std::make_index_sequence<Record::kHypers.size>{});
  Flags<Record> flags{};
  size_t used = 0;
  for (int f = 0; f < Record::kFlags.size; ++f) {
    const char* name = Record::kFlags.name[f];
    flags.value[f] = is_argument(name) ? arguments.at(used++) : (state_mask >> state_of<Record>(name) & 1) != 0;
  }
  return cuda::launch<Record>(call, hyper, flags);
}

void step(const std::string& rule, const std::vector<double>& hyper, const std::vector<bool>& arguments,
          int64_t state_mask, const std::vector<uint64_t>& memory, int64_t tensors, int64_t chunks, int64_t slices,
          int64_t partials, const std::vector<pybind11::tuple>& numbers, double weight_decay, bool decoupled,
          bool maximize, uint64_t seed, int param, int state, bool mapped, bool staged, int stochastic) {
  const auto writable = [&](size_t k) { return const_cast<void*>(address(memory[k])); };
  const cuda::Step call = {.rows = static_cast<const TableRow*>(address(memory[0])),
                           .chunk_tensors = static_cast<const int32_t*>(address(memory[1])),
                           .prepared = writable(2),
                           .tensors = tensors,
                           .chunks = chunks,
                           .arguments = {.lr = number(numbers[0]),
                                         .keep_prob = number(numbers[1]),
                                         .grad_weight = number(numbers[2]),
                                         .grad_scale = number(numbers[3]),
                                         .found_inf = number(numbers[4]),
                                         .clip = number(numbers[5]),
                                         .weight_decay = weight_decay,
                                         .decoupled_weight_decay = decoupled,
                                         .maximize = maximize,
                                         .seed = seed},
                           .param = static_cast<Dtype>(param),
                           .state = static_cast<Dtype>(state),
                           .mapped = mapped,
                           .staged = staged,
                           .stochastic = (stochastic & 1) != 0,
                           .stochastic_states = (stochastic & 2) != 0,
                           .slices = slices,
                           .partials = partials,
                           .slice_scratch = writable(3),
                           .slope_scratch = writable(4),
                           .slope = static_cast<double*>(writable(5)),
                           .stream = nullptr};
  bool found = false;
  for_each_rule([&]<class Record>() {
    if (rule != Record::kName) return;
    found = true;
    check(launch<Record>(call, hyper, arguments, state_mask));
  });
  if (!found) throw std::runtime_error("no rule " + rule);
}

// Of a table in memory[0]; the tensors of chunks and the scratch of a slope behind it.
void squares(const std::vector<uint64_t>& memory, int64_t tensors, int64_t chunks, int param, uint64_t out) {
  cuda::Step call = {};
  call.rows = static_cast<const TableRow*>(address(memory[0]));
  call.chunk_tensors = static_cast<const int32_t*>(address(memory[1]));
  call.slope_scratch = const_cast<void*>(address(memory[2]));
  call.tensors = tensors;
  call.chunks = chunks;
  call.param = static_cast<Dtype>(param);
  check(cuda::launch_squared_norms(call, static_cast<double*>(const_cast<void*>(address(out)))));
}

void clip(uint64_t squares, int64_t count, const pybind11::tuple& grad_scale, double max_norm, uint64_t norm,
          uint64_t clip) {
  const auto doubles = [](uint64_t at) { return static_cast<double*>(const_cast<void*>(address(at))); };
  check(
      cuda::launch_clip(doubles(squares), count, number(grad_scale), max_norm, doubles(norm), doubles(clip), nullptr));
}

// How many launches it took.
int64_t upload(uint64_t target, int64_t pitch, uint64_t words, int64_t count) {
  const int64_t before = cuda::launches;
  check(cuda::upload(static_cast<int64_t*>(const_cast<void*>(address(target))), pitch,
                     static_cast<const int64_t*>(address(words)), count, nullptr));
  return cuda::launches - before;
}

}  // namespace

PYBIND11_MODULE(cuda_on_host, m) {
  m.def("step", &step);
  m.def("squares", &squares);
  m.def("clip", &clip);
  m.def("upload", &upload);
  pybind11::dict constants;  // by the names that Python has for them
  constants["MAX_STATES"] = kMaxStates;
  constants["CHUNK"] = kChunk;
  constants["ACCESS"] = kSlopeLanes<float> * sizeof(float);
  constants["SLOPE_COLUMNS"] = kSlopeColumns;
  constants["PREPARED_BYTES"] = cuda::kPreparedBytes;
  constants["LANES"] = kLanes;
  constants["TILE"] = kTile;
  constants["ROUNDS"] = kPhiloxRounds;
  constants["SCALARS"] = static_cast<int>(Stream::kScalar);
  constants["PARTIAL_ELEMENTS"] = kPartialElements;
  constants["SLICE_PARTIALS"] = kSlicePartials;
  constants["MAX_SLICE_PARTIALS"] = kMaxSlicePartials;
  constants["COLUMNS"] = sizeof(TableRow) / 8;
  const auto column = [&](const char* name, size_t offset) { constants[name] = offset / 8; };
  column("PARAM", offsetof(TableRow, param));
  column("GRAD", offsetof(TableRow, grad));
  column("STATE", offsetof(TableRow, states));
  column("STEP", offsetof(TableRow, step));
  column("NUMEL", offsetof(TableRow, numel));
  column("PARAM_INDEX", offsetof(TableRow, param_index));
  column("PARAM_DTYPE", offsetof(TableRow, param_dtype));
  column("STATE_DTYPE", offsetof(TableRow, state_dtype));
  column("FIRST_CHUNK", offsetof(TableRow, first_chunk));
  column("SLICE_LENGTH", offsetof(TableRow, slice_length));
  column("FIRST_SLICE", offsetof(TableRow, first_slice));
  column("FIRST_PARTIAL", offsetof(TableRow, first_partial));
  column("SCALAR_STATE", offsetof(TableRow, scalar));
  column("MIRROR", offsetof(TableRow, mirror));
  column("GRAD_DTYPE", offsetof(TableRow, grad_dtype));
  column("MIRROR_DTYPE", offsetof(TableRow, mirror_dtype));
  column("SLAB", offsetof(TableRow, slab));
  column("CHANNELS", offsetof(TableRow, channels));
  column("BASE", offsetof(TableRow, map.base));
  column("RUN", offsetof(TableRow, map.run));
  column("PITCH", offsetof(TableRow, map.pitch));
  m.attr("constants") = constants;
}
