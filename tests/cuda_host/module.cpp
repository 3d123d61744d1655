// The launchers of csrc/cuda, compiled for the host, as a Python module. Addresses are integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/step.h"
#include "cuda/upload.h"

namespace {

using namespace lrt;

const void* address(uint64_t value) { return reinterpret_cast<const void*>(value); }

cuda::DeviceNumber number(const pybind11::tuple& of) {  // (value, address, is_double)
  return {of[0].cast<double>(), address(of[1].cast<uint64_t>()), of[2].cast<bool>()};
}

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

void step(const std::string& rule, const std::vector<double>& hyper, bool nesterov, int64_t state_mask,
          const std::vector<uint64_t>& memory, int64_t tensors, int64_t chunks, int64_t slices, int64_t lanes,
          const std::vector<pybind11::tuple>& numbers, double weight_decay, bool decoupled, bool maximize,
          uint64_t seed, int param, int state) {
  const cuda::Step call = {static_cast<const TableRow*>(address(memory[0])),
                           static_cast<const int32_t*>(address(memory[1])),
                           const_cast<void*>(address(memory[2])),
                           tensors,
                           chunks,
                           number(numbers[0]),
                           number(numbers[1]),
                           number(numbers[2]),
                           number(numbers[3]),
                           number(numbers[4]),
                           weight_decay,
                           decoupled,
                           maximize,
                           seed,
                           static_cast<Dtype>(param),
                           static_cast<Dtype>(state),
                           slices,
                           lanes,
                           const_cast<void*>(address(memory[3])),
                           const_cast<void*>(address(memory[4])),
                           static_cast<double*>(const_cast<void*>(address(memory[5]))),
                           nullptr};
  const auto has = [&](int k) { return (state_mask >> k & 1) != 0; };
  if (rule == "sgd") return check(cuda::launch_sgd(call, {hyper[0], hyper[1]}, has(0), nesterov));
  if (rule == "adam") return check(cuda::launch_adam(call, {hyper[0], hyper[1], hyper[2]}, has(2)));
  if (rule == "rmsprop") return check(cuda::launch_rmsprop(call, {hyper[0], hyper[1], hyper[2]}, has(1), has(2)));
  if (rule == "radam") return check(cuda::launch_radam(call, {hyper[0], hyper[1], hyper[2]}));
  if (rule == "adabelief") return check(cuda::launch_adabelief(call, {hyper[0], hyper[1], hyper[2]}));
  if (rule == "average_sgd") return check(cuda::launch_average_sgd(call, {static_cast<int64_t>(hyper[0])}));
  throw std::runtime_error("no rule " + rule);
}

void upload(uint64_t target, uint64_t words, int64_t count) {
  check(cuda::upload(static_cast<int64_t*>(const_cast<void*>(address(target))),
                     static_cast<const int64_t*>(address(words)), count, nullptr));
}

}  // namespace

PYBIND11_MODULE(cuda_on_host, m) {
  m.def("step", &step);
  m.def("upload", &upload);
  m.attr("chunk") = lrt::kChunk;
  m.attr("prepared_bytes") = lrt::cuda::kPreparedBytes;
  m.attr("columns") = sizeof(lrt::TableRow) / 8;
}
