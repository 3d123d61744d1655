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

// What a step over a table takes is packed into three lists, because each argument of an op costs some 0.3 us:
// integers, numbers and tensors, each in the order in which they are taken here. Of the tensors that may be missing,
// the bits of the first integer say which are there. lrtricks_fused/step/native.py packs them.
constexpr const char* kPacked = "Tensor table, Tensor(a!)? sums, int[] integers, float[] numbers, Tensor[] tensors";

constexpr const char* kStorage =
    "Tensor(x!)[]? mirrors=None, Tensor(y!)[]? lows=None, Tensor(z!)[]? changes=None, int stochastic=0";

constexpr const char* kScalars =
    "float lr, float weight_decay, bool decoupled_weight_decay, bool maximize, float keep_prob, float grad_weight,"
    " int seed, Tensor? lr_tensor=None, Tensor? keep_prob_tensor=None, Tensor? grad_weight_tensor=None,"
    " Tensor? grad_scale=None, Tensor? found_inf=None, Tensor? clip=None";

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
  return operands + "Tensor(" + alias + "!)? sums=None, int[] index_maps=[], " + kStorage;
}

template <class Record>
std::string op_name(bool table) {
  return std::string(Record::kName) + (table ? "_table_" : "_");
}

template <class Record>
std::string schema_of(bool table) {
  if (table) return op_name<Record>(table) + "(" + kPacked + ") -> ()";
  std::string text = op_name<Record>(table) + "(" + list_operands<Record>() + ", *, ";
  for (int i = 0; i < Record::kHypers.size; ++i) text += std::string(Record::kHypers.name[i]) + ", ";
  for (int f = 0; f < Record::kFlags.size; ++f) {
    if (is_argument(Record::kFlags.name[f])) text += std::string(Record::kFlags.name[f]) + ", ";
  }
  return text + kScalars + ") -> ()";
}

// The arguments on a boxed stack, in schema order.
class Stack {
 public:
  explicit Stack(StableIValue* stack) : next_(stack) {}

  template <class T>
  T take() {
    return torch::stable::detail::to<T>(*next_++);
  }

 private:
  StableIValue* next_;
};

// The arguments that are packed into lists.
class Lists {
 public:
  explicit Lists(Stack& stack)
      : integers_(stack.take<std::vector<int64_t>>()),
        numbers_(stack.take<std::vector<double>>()),
        tensors_(stack.take<std::vector<Tensor>>()),
        there_(take<int64_t>()) {}

  template <class T>
  T take() {
    if constexpr (std::is_same_v<T, double>) {
      return next(numbers_, next_number_);
    } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
      const bool is_there = there_ & 1;
      there_ >>= 1;
      return is_there ? std::optional<Tensor>(next(tensors_, next_tensor_)) : std::nullopt;
    } else {
      return static_cast<T>(next(integers_, next_integer_));
    }
  }

 private:
  template <class T>
  static const T& next(const std::vector<T>& list, size_t& index) {
    require(index < list.size(), "Invalid integers, numbers or tensors: there are too few of them");
    return list[index++];
  }

  std::vector<int64_t> integers_;
  std::vector<double> numbers_;
  std::vector<Tensor> tensors_;
  size_t next_integer_ = 0, next_number_ = 0, next_tensor_ = 0;
  int64_t there_;
};

// Takes what a step is told from where it stands.
template <class Source>
class Arguments {
 public:
  explicit Arguments(Source& source) : source_(source) {}

  template <class T>
  T take() {
    return source_.template take<T>();
  }

  Operands take_table() {
    Operands operands;
    operands.state_mask = take<int64_t>();
    operands.param_dtype = take<int64_t>();
    operands.state_dtype = take<int64_t>();
    operands.chunk_tensors = take<std::optional<Tensor>>();
    operands.prepared = take<std::optional<Tensor>>();
    operands.slices = take<int64_t>();
    operands.partials = take<int64_t>();
    operands.mapped = take<bool>();
    operands.staged = take<bool>();
    operands.stochastic = take<int64_t>();
    operands.slice_scratch = take<std::optional<Tensor>>();
    operands.slope_scratch = take<std::optional<Tensor>>();
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
    operands.sums = take<std::optional<Tensor>>();
    operands.index_maps = take<std::vector<int64_t>>();
    for (auto* list : {&operands.mirrors, &operands.lows, &operands.changes}) {
      if (auto given = take<std::optional<std::vector<Tensor>>>()) *list = std::move(*given);
    }
    operands.stochastic = take<int64_t>();
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
    arguments.clip = take_scalar(1.0, "clip");
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

  Source& source_;
};

// Raises where a state is missing that the kernels of every variant read.
template <class Record>
void require_states(const Operands& operands) {
  for (int k = 0; k < Record::kStates.size; ++k) {
    require(!is_required<Record>(k) || operands.empty() || operands.has_state(k), "Invalid ", Record::kStates.name[k],
            ": there are none");
  }
}

template <class Record>
using StepOf = void (*)(const Operands&, const StepArguments&, const typename Record::Hyper&, const Flags<Record>&);

// The step of a backend, told the rest of its arguments.
template <class Record, StepOf<Record> kStep, class Source>
void step_on(Operands& operands, Arguments<Source>& in) {
  const auto hyper = in.template take_hyper<Record>();
  const Flags<Record> flags = in.template take_flags<Record>(operands);
  const StepArguments arguments = in.take_step_arguments(operands.table ? &*operands.table : nullptr);
  if constexpr (requires { hyper.window; }) {
    require(hyper.window >= 1, "Invalid window=", hyper.window, ": must be at least 1");
    operands.window = hyper.window;
  }
  require_states<Record>(operands);
  kStep(operands, arguments, hyper, flags);
}

// The op over lists of tensors.
template <class Record, StepOf<Record> kStep>
void list_op(StableIValue* arguments, uint64_t, uint64_t) {
  Stack stack(arguments);
  Arguments<Stack> in(stack);
  Operands operands = in.template take_lists<Record>();
  step_on<Record, kStep>(operands, in);
}

// The op over a table of addresses.
template <class Record, StepOf<Record> kStep>
void table_op(StableIValue* arguments, uint64_t, uint64_t) {
  Stack stack(arguments);
  const auto table = stack.take<Tensor>();
  const auto sums = stack.take<std::optional<Tensor>>();
  Lists lists(stack);
  Arguments<Lists> in(lists);
  Operands operands = in.take_table();
  operands.table = table;
  operands.sums = sums;
  step_on<Record, kStep>(operands, in);
}

}  // namespace lrt
