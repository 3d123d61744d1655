// What the ops of a rule follow from: its record (core/record.h). Per rule there is one op over lists of tensors, and
// one over a table of their addresses, which is private: nothing can check an address.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <utility>

#include "core/arguments.h"
#include "core/record.h"
#include "operands.h"

namespace lrt {

constexpr const char* kTableOperands =
    "Tensor table, int state_mask, int param_dtype, int state_dtype, Tensor? chunk_tensors, Tensor? prepared,"
    " int slices=0, int partials=0, Tensor? slice_scratch=None, Tensor? slope_scratch=None, Tensor(a!)? slope=None";

constexpr const char* kScalars =
    "float lr, float weight_decay, bool decoupled_weight_decay, bool maximize, float keep_prob, float grad_weight,"
    " int seed, Tensor? lr_tensor=None, Tensor? keep_prob_tensor=None, Tensor? grad_weight_tensor=None,"
    " Tensor? grad_scale=None, Tensor? found_inf=None";

template <class Record>
std::string list_operands() {
  std::string operands = "Tensor(a!)[] params, Tensor[] grads, ";
  char alias = 'b';
  for (int k = 0; k < Record::kStates.size; ++k) {
    operands += std::string("Tensor(") + alias++ + "!)[] " + Record::kStates.name[k] + ", ";
  }
  if constexpr (kHasScalar<typename Record::Hyper>) {
    operands += std::string("Tensor(") + alias++ + "!)[] " + Record::kScalar + ", ";
  }
  operands += std::string("Tensor(") + alias++ + "!)[] steps, int[] param_indices, bool centralize=False, ";
  return operands + "Tensor(" + alias + "!)? slope=None";
}

template <class Record>
std::string op_name(bool table) {
  return std::string(Record::kName) + (table ? "_table_" : "_");
}

template <class Record>
std::string schema_of(bool table) {
  std::string text = op_name<Record>(table) + "(" + (table ? kTableOperands : list_operands<Record>()) + ", *, ";
  for (int i = 0; i < Record::kHypers.size; ++i) text += std::string(Record::kHypers.name[i]) + ", ";
  for (int f = 0; f < Record::kFlags.size; ++f) {
    if (is_argument(Record::kFlags.name[f])) text += std::string(Record::kFlags.name[f]) + ", ";
  }
  return text + kScalars + ") -> ()";
}

// Takes the arguments off a boxed stack, in schema order.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  template <class T>
  T take() {
    return torch::stable::detail::to<T>(*next_++);
  }

  Operands take_table() {
    Operands operands;
    operands.table = take<Tensor>();
    operands.state_mask = take<int64_t>();
    operands.param_dtype = take<int64_t>();
    operands.state_dtype = take<int64_t>();
    operands.chunk_tensors = take<std::optional<Tensor>>();
    operands.prepared = take<std::optional<Tensor>>();
    operands.slices = take<int64_t>();
    operands.partials = take<int64_t>();
    operands.slice_scratch = take<std::optional<Tensor>>();
    operands.slope_scratch = take<std::optional<Tensor>>();
    operands.slope = take<std::optional<Tensor>>();
    return operands;
  }

  template <class Record>
  Operands take_lists() {
    Operands operands;
    operands.params = take<std::vector<Tensor>>();
    operands.grads = take<std::vector<Tensor>>();
    for (int k = 0; k < Record::kStates.size; ++k) operands.states.push_back(take<std::vector<Tensor>>());
    if (kHasScalar<typename Record::Hyper>) operands.scalars = take<std::vector<Tensor>>();
    operands.steps = take<std::vector<Tensor>>();
    operands.param_indices = take<std::vector<int64_t>>();
    operands.centralize = take<bool>();
    operands.slope = take<std::optional<Tensor>>();
    return operands;
  }

  template <class Record>
  typename Record::Hyper take_hyper() {
    // Braces evaluate from left to right.
    return [&]<size_t... K>(std::index_sequence<K...>) {
      return typename Record::Hyper{take_number<Record::kHypers.name[K][0] == 'i'>()...};
    }(std::make_index_sequence<Record::kHypers.size>{});
  }

  template <class Record>
  Flags<Record> take_flags(const Operands& operands) {
    Flags<Record> flags{};
    for (int f = 0; f < Record::kFlags.size; ++f) {
      const char* name = Record::kFlags.name[f];
      flags.value[f] = is_argument(name) ? take<bool>() : operands.has_state(state_of<Record>(name));
    }
    return flags;
  }

  // `operand`: where tensors may lie that the kernels read; null: on the CPU alone.
  StepArguments take_step_arguments(const Tensor* operand) {
    const auto take_scalar = [&](double value, const char* name) {
      return scalar_of(value, take<std::optional<Tensor>>(), name, operand);
    };
    StepArguments arguments;
    const double lr = take<double>();
    arguments.weight_decay = take<double>();
    arguments.decoupled_weight_decay = take<bool>();
    arguments.maximize = take<bool>();
    const double keep_prob = take<double>();
    const double grad_weight = take<double>();
    arguments.seed = static_cast<uint64_t>(take<int64_t>());
    arguments.lr = take_scalar(lr, "lr");
    arguments.keep_prob = take_scalar(keep_prob, "keep_prob");
    arguments.grad_weight = take_scalar(grad_weight, "grad_weight");
    arguments.grad_scale = take_scalar(1.0, "grad_scale");
    arguments.found_inf = take_scalar(0.0, "found_inf");
    return arguments;
  }

 private:
  template <bool kInteger>
  auto take_number() {
    if constexpr (kInteger) {
      return take<int64_t>();
    } else {
      return take<double>();
    }
  }

  StableIValue* next_;
};

// Raises where a state is missing that the kernels of every variant read.
template <class Record>
void require_states(const Operands& operands) {
  for (int k = 0; k < Record::kStates.size; ++k) {
    require(!is_required<Record>(k) || operands.empty() || operands.has_state(k), "Invalid ", Record::kStates.name[k],
            ": there are none");
  }
}

// One op: its arguments off the stack, then the step of a backend.
template <bool kTable, class Record,
          void (*Step)(const Operands&, const StepArguments&, const typename Record::Hyper&, const Flags<Record>&)>
void step_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Operands operands = kTable ? in.take_table() : in.take_lists<Record>();
  const auto hyper = in.take_hyper<Record>();
  const Flags<Record> flags = in.take_flags<Record>(operands);
  const StepArguments arguments = in.take_step_arguments(kTable ? &*operands.table : nullptr);
  if constexpr (requires { hyper.window; }) {
    require(hyper.window >= 1, "Invalid window=", hyper.window, ": must be at least 1");
    operands.window = hyper.window;
  }
  require_states<Record>(operands);
  Step(operands, arguments, hyper, flags);
}

}  // namespace lrt
