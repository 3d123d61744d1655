// Op schemas, argument decoding and registration. Per rule one op over lists of tensors, and one over a table of
// their addresses, which is private: nothing can check an address. The parts that all schemas share are written once,
// the rest stands in kRuleSchemas.
#include "ops.h"

#include <string>

#include "cpu/isa.h"
#include "cpu/lossgrad.h"
#include "cpu/step.h"
#if defined(LRT_CUDA_ARCHS)
#include "cuda/entry.h"
#include "cuda/upload.h"
#endif
#include "rules/adabelief.h"
#include "rules/adam.h"
#include "rules/average_sgd.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace lrt {
namespace {

struct RuleSchema {
  const char* name;
  std::vector<const char*> states;
  size_t required;  // states that every variant has; they come first, the lists of the others may be empty
  const char* hyper;
};

const RuleSchema kSgd = {"sgd", {"momentum_buffers"}, 0, "float momentum, float dampening, bool nesterov"};
const RuleSchema kAdam = {
    "adam", {"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"}, 2, "float beta1, float beta2, float eps"};
const RuleSchema kRmsprop = {
    "rmsprop", {"square_avgs", "grad_avgs", "momentum_buffers"}, 1, "float alpha, float eps, float momentum"};
const RuleSchema kRadam = {"radam", {"exp_avgs", "exp_avg_sqs"}, 2, "float beta1, float beta2, float eps"};
const RuleSchema kAdabelief = {"adabelief", {"exp_avgs", "exp_avg_vars"}, 2, "float beta1, float beta2, float eps"};
const RuleSchema kAverageSgd = {"average_sgd", {"window_buffers"}, 1, "int window"};
const RuleSchema* const kRuleSchemas[] = {&kSgd, &kAdam, &kRmsprop, &kRadam, &kAdabelief, &kAverageSgd};

std::string list_operands(const RuleSchema& rule) {
  std::string operands = "Tensor(a!)[] params, Tensor[] grads, ";
  char alias = 'b';
  for (const char* state : rule.states) operands += std::string("Tensor(") + alias++ + "!)[] " + state + ", ";
  operands += std::string("Tensor(") + alias++ + "!)[] steps, int[] param_indices, bool centralize=False, ";
  return operands + "Tensor(" + alias + "!)? slope=None";
}

std::string schema_of(const RuleSchema& rule, const char* suffix, const std::string& operands) {
  return std::string(rule.name) + suffix + "(" + operands + ", *, " + rule.hyper +
         ", float lr, float weight_decay, bool decoupled_weight_decay, bool maximize, float keep_prob,"
         " float grad_weight, int seed, Tensor? lr_tensor=None, Tensor? keep_prob_tensor=None,"
         " Tensor? grad_weight_tensor=None, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()";
}

// Takes the arguments off a boxed stack, in schema order.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  template <class T>
  T take() {
    return torch::stable::detail::to<T>(*next_++);
  }

  ListCall take_operands(bool table, size_t states) {
    ListCall call;
    if (table) {
      call.table = take<Tensor>();
      call.state_mask = take<int64_t>();
      call.param_dtype = take<int64_t>();
      call.state_dtype = take<int64_t>();
      call.chunk_tensors = take<std::optional<Tensor>>();
      call.prepared = take<std::optional<Tensor>>();
      call.slices = take<int64_t>();
      call.lanes = take<int64_t>();
      call.slice_scratch = take<std::optional<Tensor>>();
      call.slope_scratch = take<std::optional<Tensor>>();
      call.slope = take<std::optional<Tensor>>();
      return call;
    }
    call.params = take<std::vector<Tensor>>();
    call.grads = take<std::vector<Tensor>>();
    for (size_t k = 0; k < states; ++k) call.states.push_back(take<std::vector<Tensor>>());
    call.steps = take<std::vector<Tensor>>();
    call.param_indices = take<std::vector<int64_t>>();
    call.centralize = take<bool>();
    call.slope = take<std::optional<Tensor>>();
    return call;
  }

  void take_scalars(ListCall& call) {
    call.lr.value = take<double>();
    call.weight_decay = take<double>();
    call.decoupled_weight_decay = take<bool>();
    call.maximize = take<bool>();
    call.keep_prob.value = take<double>();
    call.grad_weight.value = take<double>();
    call.seed = static_cast<uint64_t>(take<int64_t>());
    call.lr.tensor = take<std::optional<Tensor>>();
    call.keep_prob.tensor = take<std::optional<Tensor>>();
    call.grad_weight.tensor = take<std::optional<Tensor>>();
    call.grad_scale = take<std::optional<Tensor>>();
    call.found_inf = take<std::optional<Tensor>>();
  }

 private:
  StableIValue* next_;
};

// Raises where a state is missing that the kernels of every variant read.
void require_states(const ListCall& call, const RuleSchema& rule) {
  for (size_t k = 0; k < rule.required; ++k) {
    require(call.empty() || call.has_state(k), "Invalid ", rule.states[k], ": there are none");
  }
}

template <bool kTable, void (*Step)(ListCall&, const SGDHyper&, bool)>
void sgd(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  ListCall call = in.take_operands(kTable, kSgd.states.size());
  const double momentum = in.take<double>(), dampening = in.take<double>();
  const bool nesterov = in.take<bool>();
  in.take_scalars(call);
  Step(call, {momentum, dampening}, nesterov);
}

template <bool kTable, const RuleSchema& kRule, class Hyper, void (*Step)(ListCall&, const Hyper&)>
void three_numbers(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  ListCall call = in.take_operands(kTable, kRule.states.size());
  const double first = in.take<double>(), second = in.take<double>(), third = in.take<double>();
  in.take_scalars(call);
  require_states(call, kRule);
  Step(call, {first, second, third});
}

template <bool kTable, void (*Step)(ListCall&, const AverageSGDHyper&)>
void average_sgd(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  ListCall call = in.take_operands(kTable, kAverageSgd.states.size());
  call.window = in.take<int64_t>();
  in.take_scalars(call);
  require(call.window >= 1, "Invalid window=", call.window, ": must be at least 1");
  require_states(call, kAverageSgd);
  Step(call, {call.window});
}

constexpr const char* kTableOperands =
    "Tensor table, int state_mask, int param_dtype, int state_dtype, Tensor? chunk_tensors, Tensor? prepared,"
    " int slices=0, int lanes=0, Tensor? slice_scratch=None, Tensor? slope_scratch=None, Tensor(a!)? slope=None";

template <bool kTable, class Library>
void implement_on_cpu(Library& m) {
  const auto name = [](const char* rule) { return std::string(rule) + (kTable ? "_table_" : "_"); };
  m.impl(name("sgd").c_str(), sgd<kTable, cpu::step_sgd>);
  m.impl(name("adam").c_str(), three_numbers<kTable, kAdam, AdamHyper, cpu::step_adam>);
  m.impl(name("rmsprop").c_str(), three_numbers<kTable, kRmsprop, RMSpropHyper, cpu::step_rmsprop>);
  m.impl(name("radam").c_str(), three_numbers<kTable, kRadam, RAdamHyper, cpu::step_radam>);
  m.impl(name("adabelief").c_str(), three_numbers<kTable, kAdabelief, AdaBeliefHyper, cpu::step_adabelief>);
  m.impl(name("average_sgd").c_str(), average_sgd<kTable, cpu::step_average_sgd>);
}

#if defined(LRT_CUDA_ARCHS)
template <class Library>
void implement_on_cuda(Library& m) {
  m.impl("sgd_table_", sgd<true, cuda::step_sgd>);
  m.impl("adam_table_", three_numbers<true, kAdam, AdamHyper, cuda::step_adam>);
  m.impl("rmsprop_table_", three_numbers<true, kRmsprop, RMSpropHyper, cuda::step_rmsprop>);
  m.impl("radam_table_", three_numbers<true, kRadam, RAdamHyper, cuda::step_radam>);
  m.impl("adabelief_table_", three_numbers<true, kAdabelief, AdaBeliefHyper, cuda::step_adabelief>);
  m.impl("average_sgd_table_", average_sgd<true, cuda::step_average_sgd>);
  m.impl("upload_", TORCH_BOX(&cuda::upload_words));
}

std::string cuda_archs() { return LRT_CUDA_ARCHS; }
int64_t cuda_version() { return cuda::toolkit_version(); }
#else
std::string cuda_archs() { return ""; }
int64_t cuda_version() { return 0; }
#endif

std::string cpu_isa() { return cpu::isa_name(cpu::active_isa()); }

}  // namespace
}  // namespace lrt

STABLE_TORCH_LIBRARY(lrtricks_fused, m) {
  for (const lrt::RuleSchema* rule : lrt::kRuleSchemas) {
    m.def(lrt::schema_of(*rule, "_", lrt::list_operands(*rule)).c_str());
    m.def(lrt::schema_of(*rule, "_table_", lrt::kTableOperands).c_str());
  }
  m.def("cpu_isa() -> str");
  m.def("cuda_archs() -> str");
  m.def("cuda_version() -> int");
  m.def(
      "lossgrad_(Tensor loss, Tensor trial, Tensor slope, Tensor(a!) ratio, Tensor(b!)[] lrs, float c,"
      " float resolution) -> ()");
  m.def("check_table(Tensor table) -> ()");
  m.def("upload_(Tensor(a!) target, Tensor words) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CPU, m) {
  lrt::implement_on_cpu<false>(m);
  lrt::implement_on_cpu<true>(m);
  m.impl("check_table", TORCH_BOX(&lrt::cpu::check_table));
  m.impl("lossgrad_", TORCH_BOX(&lrt::cpu::adapt_lrs));
}

STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&lrt::cpu_isa));
  m.impl("cuda_archs", TORCH_BOX(&lrt::cuda_archs));
  m.impl("cuda_version", TORCH_BOX(&lrt::cuda_version));
}

#if defined(LRT_CUDA_ARCHS)
STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CUDA, m) { lrt::implement_on_cuda(m); }
#endif
