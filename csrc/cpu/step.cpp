// CPU entry of each rule (see step.h): torch tensors in, engine work out.
#include "cpu/step.h"

#include <algorithm>
#include <deque>
#include <string>
#include <functional>

#include "cpu/engine.h"
#include "cpu/kernels.h"

namespace lrt::cpu {
namespace {

using torch::headeronly::ScalarType;
using KernelOf = std::function<StepKernel(Dtype param, Dtype state)>;

constexpr int64_t kGrainTiles = 64;  // 32,768 elements, torch's own grain for elementwise work

std::optional<Dtype> dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat;
    case ScalarType::Double: return Dtype::kDouble;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kHalf;
    default: return std::nullopt;
  }
}

uint8_t size_of(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

double read_scalar(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.numel() == 1, "Invalid ", name, ": must be one number on the CPU");
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return *static_cast<const float*>(tensor.const_data_ptr());
    case ScalarType::Double: return *static_cast<const double*>(tensor.const_data_ptr());
    default: STD_TORCH_CHECK(false, "Invalid ", name, ": must be float32 or float64");
  }
  return 0;
}

double read_number(const Number& number, const char* name) {
  return number.tensor ? read_scalar(*number.tensor, name) : number.value;
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto left = a.sizes(), right = b.sizes();
  return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin());
}

std::optional<StridedView> view_of(const Tensor& tensor) {
  if (tensor.is_contiguous()) return std::nullopt;
  return StridedView(tensor.sizes().data(), tensor.strides().data(), tensor.dim(), tensor.element_size());
}

// One call's work and the layouts it points to.
class CallWork {
 public:
  CallWork(const ListCall& call, const void* hyper, const KernelOf& kernel_of)
      : call_(call), kernel_of_(kernel_of) {
    const double scale = call.grad_scale ? read_scalar(*call.grad_scale, "grad_scale") : 1.0;
    const double factor = read_number(call.grad_weight, "grad_weight") * (1.0 / scale);
    work.hyper = hyper;
    work.scalars = {read_number(call.lr, "lr"), call.weight_decay, call.maximize ? -factor : factor,
                    call.decoupled_weight_decay};
    work.seed = call.seed;
    const double keep_prob = read_number(call.keep_prob, "keep_prob");
    STD_TORCH_CHECK(keep_prob >= 0 && keep_prob <= 1, "Invalid keep_prob=", keep_prob, ": must be in [0, 1]");
    work.threshold = keep_threshold(keep_prob);
    check_length(call.grads.size(), "grads");
    check_length(call.steps.size(), "steps");
    check_length(call.param_indices.size(), "param_indices");
    for (const auto& list : call.states) {
      if (!list.empty()) check_length(list.size(), "states");
    }
    work.tensors.reserve(call.params.size());
    for (size_t i = 0; i < call.params.size(); ++i) add(i);
  }

  ListWork work;

 private:
  void check_length(size_t size, const char* name) const {
    STD_TORCH_CHECK(size == call_.params.size(), "Invalid ", name, ": ", size, " tensors for ",
                    call_.params.size(), " params");
  }

  void check_operand(const Tensor& tensor, const Tensor& param, const char* name, size_t i) const {
    STD_TORCH_CHECK(tensor.is_cpu(), "Invalid ", name, "[", i, "]: must be on the CPU, like params[", i, "]");
    STD_TORCH_CHECK(same_sizes(tensor, param), "Invalid ", name, "[", i, "]: its shape differs from params[", i, "]");
  }

  void add(size_t i) {
    const Tensor &param = call_.params[i], &grad = call_.grads[i], &step = call_.steps[i];
    check_operand(grad, param, "grads", i);
    STD_TORCH_CHECK(grad.scalar_type() == param.scalar_type(), "Invalid grads[", i, "]: its dtype differs from params[", i, "]");
    STD_TORCH_CHECK(step.is_cpu() && step.numel() == 1 && step.scalar_type() == ScalarType::Double,
                    "Invalid steps[", i, "]: must be one float64 on the CPU");
    TensorWork tensor = {};
    tensor.step = *static_cast<const double*>(step.const_data_ptr()) + 1;
    tensor.param_index = static_cast<uint32_t>(call_.param_indices[i]);
    tensor.whole = {param.mutable_data_ptr(), grad.const_data_ptr(), {}, 0, param.numel()};
    Layouts layouts = {view_of(param), view_of(grad), {}};
    bool strided = layouts.param || layouts.grad;
    bool overlap = layouts.param && layouts.param->may_overlap();
    const std::optional<Dtype> param_dtype = dtype_of(param);
    std::optional<Dtype> state_dtype = param_dtype;
    int used = 0;  // states a variant lacks are empty lists; the rest close up
    for (const auto& list : call_.states) {
      if (list.empty()) continue;
      check_operand(list[i], param, "states", i);
      STD_TORCH_CHECK(used == 0 || dtype_of(list[i]) == state_dtype, "Invalid states[", i, "]: dtypes differ");
      state_dtype = dtype_of(list[i]);
      layouts.states[used] = view_of(list[i]);
      strided = strided || layouts.states[used];
      overlap = overlap || (layouts.states[used] && layouts.states[used]->may_overlap());
      tensor.whole.states[used++] = list[i].mutable_data_ptr();
    }
    STD_TORCH_CHECK(!overlap, "Invalid params[", i, "]: elements of it or of a state share memory");
    tensor.kernel = param_dtype && state_dtype ? kernel_of_(*param_dtype, *state_dtype) : nullptr;
    STD_TORCH_CHECK(tensor.kernel, "Invalid params[", i, "]: no kernel for its dtype with the dtype of its states");
    tensor.param_size = size_of(*param_dtype);
    tensor.state_size = size_of(*state_dtype);
    if (strided) tensor.layouts = &layouts_.emplace_back(std::move(layouts));
    work.add(tensor);
  }

  const ListCall& call_;
  const KernelOf& kernel_of_;
  std::deque<Layouts> layouts_;  // stable addresses
};

void run(const ListCall& call, const void* hyper, const KernelOf& kernel_of) {
  const CallWork checked(call, hyper, kernel_of);
  if (call.found_inf && read_scalar(*call.found_inf, "found_inf") != 0) return;
  const ListWork& work = checked.work;
  for (size_t i = 0; i < call.steps.size(); ++i) {
    *static_cast<double*>(call.steps[i].mutable_data_ptr()) = work.tensors[i].step;
  }
  torch::stable::parallel_for(0, work.tiles, kGrainTiles,
                              [&](int64_t begin, int64_t end) { work.run(begin, end); });
}

}  // namespace

void step_sgd(ListCall& call, const SGDHyper& hyper, bool nesterov) {
  const bool momentum = !call.states[0].empty();
  run(call, &hyper, with_active_isa([&](auto isa) -> KernelOf {
    return [=](Dtype param, Dtype state) { return find_sgd<decltype(isa)>(momentum, nesterov, param, state); };
  }));
}

void step_adam(ListCall& call, const AdamHyper& hyper) {
  const bool amsgrad = !call.states[2].empty();
  run(call, &hyper, with_active_isa([&](auto isa) -> KernelOf {
    return [=](Dtype param, Dtype state) { return find_adam<decltype(isa)>(amsgrad, param, state); };
  }));
}

void step_rmsprop(ListCall& call, const RMSpropHyper& hyper) {
  const bool centered = !call.states[1].empty(), momentum = !call.states[2].empty();
  run(call, &hyper, with_active_isa([&](auto isa) -> KernelOf {
    return [=](Dtype param, Dtype state) { return find_rmsprop<decltype(isa)>(centered, momentum, param, state); };
  }));
}

void step_radam(ListCall& call, const RAdamHyper& hyper) {
  run(call, &hyper, with_active_isa([](auto isa) -> KernelOf {
    return [](Dtype param, Dtype state) { return find_radam<decltype(isa)>(param, state); };
  }));
}

void step_adabelief(ListCall& call, const AdaBeliefHyper& hyper) {
  run(call, &hyper, with_active_isa([](auto isa) -> KernelOf {
    return [](Dtype param, Dtype state) { return find_adabelief<decltype(isa)>(param, state); };
  }));
}

}  // namespace lrt::cpu
