// What the ops of a rule follow from: its record (core/record.h). Per rule there is one op over lists of tensors, and
// one over a table of their addresses, which is private: nothing can check an address.
#pragma once

#include <string>
#include <utility>

#include "call.h"
#include "core/record.h"

namespace lrt {

constexpr const char* kTableOperands =
    "Tensor table, int state_mask, int param_dtype, int state_dtype, Tensor? chunk_tensors, Tensor? prepared,"
    " int slices=0, int lanes=0, Tensor? slice_scratch=None, Tensor? slope_scratch=None, Tensor(a!)? slope=None";

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

  ListCall take_table() {
    ListCall call;
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

  template <class Record>
  ListCall take_lists() {
    ListCall call;
    call.params = take<std::vector<Tensor>>();
    call.grads = take<std::vector<Tensor>>();
    for (int k = 0; k < Record::kStates.size; ++k) call.states.push_back(take<std::vector<Tensor>>());
    if (kHasScalar<typename Record::Hyper>) call.scalars = take<std::vector<Tensor>>();
    call.steps = take<std::vector<Tensor>>();
    call.param_indices = take<std::vector<int64_t>>();
    call.centralize = take<bool>();
    call.slope = take<std::optional<Tensor>>();
    return call;
  }

  template <class Record>
  typename Record::Hyper take_hyper() {
    // Braces evaluate from left to right.
    return [&]<size_t... K>(std::index_sequence<K...>) {
      return typename Record::Hyper{take_number<Record::kHypers.name[K][0] == 'i'>()...};
    }(std::make_index_sequence<Record::kHypers.size>{});
  }

  template <class Record>
  Flags<Record> take_flags(const ListCall& call) {
    Flags<Record> flags{};
    for (int f = 0; f < Record::kFlags.size; ++f) {
      const char* name = Record::kFlags.name[f];
      flags.value[f] = is_argument(name) ? take<bool>() : call.has_state(state_of<Record>(name));
    }
    return flags;
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
void require_states(const ListCall& call) {
  for (int k = 0; k < Record::kStates.size; ++k) {
    require(!is_required<Record>(k) || call.empty() || call.has_state(k), "Invalid ", Record::kStates.name[k],
            ": there are none");
  }
}

// One op: its arguments off the stack, then the step of a backend.
template <bool kTable, class Record, void (*Step)(const ListCall&, const typename Record::Hyper&, const Flags<Record>&)>
void step_op(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  ListCall call = kTable ? in.take_table() : in.take_lists<Record>();
  const auto hyper = in.take_hyper<Record>();
  const Flags<Record> flags = in.take_flags<Record>(call);
  in.take_scalars(call);
  if constexpr (requires { hyper.window; }) {
    require(hyper.window >= 1, "Invalid window=", hyper.window, ": must be at least 1");
    call.window = hyper.window;
  }
  require_states<Record>(call);
  Step(call, hyper, flags);
}

}  // namespace lrt
