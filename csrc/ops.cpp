// Op schemas, argument decoding and registration. One op per rule over lists of tensors; the parts that all
// schemas share are written once, the rest stands in kRuleSchemas.
#include "ops.h"

#include <string>

#include "cpu/isa.h"
#include "cpu/step.h"
#include "rules/adabelief.h"
#include "rules/adam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace lrt {
namespace {

struct RuleSchema {
  const char* name;
  std::vector<const char*> states;  // lists that may be empty where a variant has no such state
  const char* hyper;
};

const RuleSchema kRuleSchemas[] = {
    {"sgd_", {"momentum_buffers"}, "float momentum, float dampening, bool nesterov"},
    {"adam_", {"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"}, "float beta1, float beta2, float eps"},
    {"rmsprop_", {"square_avgs", "grad_avgs", "momentum_buffers"}, "float alpha, float eps, float momentum"},
    {"radam_", {"exp_avgs", "exp_avg_sqs"}, "float beta1, float beta2, float eps"},
    {"adabelief_", {"exp_avgs", "exp_avg_vars"}, "float beta1, float beta2, float eps"},
};

std::string schema_of(const RuleSchema& rule) {
  std::string schema = std::string(rule.name) + "(Tensor(a!)[] params, Tensor[] grads, ";
  char alias = 'b';
  for (const char* state : rule.states) schema += std::string("Tensor(") + alias++ + "!)[] " + state + ", ";
  return schema + "Tensor(" + alias + "!)[] steps, int[] param_indices, *, " + rule.hyper +
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

  ListCall take_lists(size_t states) {
    ListCall call;
    call.params = take<std::vector<Tensor>>();
    call.grads = take<std::vector<Tensor>>();
    for (size_t k = 0; k < states; ++k) call.states.push_back(take<std::vector<Tensor>>());
    call.steps = take<std::vector<Tensor>>();
    call.param_indices = take<std::vector<int64_t>>();
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

void sgd(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  ListCall call = in.take_lists(1);
  const double momentum = in.take<double>(), dampening = in.take<double>();
  const bool nesterov = in.take<bool>();
  in.take_scalars(call);
  cpu::step_sgd(call, {momentum, dampening}, nesterov);
}

template <class Hyper, size_t kStates, void (*Step)(ListCall&, const Hyper&)>
void three_numbers(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  ListCall call = in.take_lists(kStates);
  const double first = in.take<double>(), second = in.take<double>(), third = in.take<double>();
  in.take_scalars(call);
  Step(call, {first, second, third});
}

std::string cpu_isa() { return cpu::isa_name(cpu::active_isa()); }

}  // namespace
}  // namespace lrt

STABLE_TORCH_LIBRARY(lrtricks_fused, m) {
  for (const auto& rule : lrt::kRuleSchemas) m.def(lrt::schema_of(rule).c_str());
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CPU, m) {
  m.impl("sgd_", lrt::sgd);
  m.impl("adam_", lrt::three_numbers<lrt::AdamHyper, 3, lrt::cpu::step_adam>);
  m.impl("rmsprop_", lrt::three_numbers<lrt::RMSpropHyper, 3, lrt::cpu::step_rmsprop>);
  m.impl("radam_", lrt::three_numbers<lrt::RAdamHyper, 2, lrt::cpu::step_radam>);
  m.impl("adabelief_", lrt::three_numbers<lrt::AdaBeliefHyper, 2, lrt::cpu::step_adabelief>);
}

STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&lrt::cpu_isa));
}
