// CPU entry of every rule (see entry.h): torch tensors in, engine work out.
#include "cpu/entry.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <memory>
#include <string>

#include "core/pairs.h"
#include "core/sums.h"
#include "cpu/engine.h"
#include "cpu/staged.h"

namespace lrt::cpu {
namespace {

using IntArray = torch::headeronly::IntHeaderOnlyArrayRef;

std::optional<StridedView> view_of(const Tensor& tensor) {
  if (tensor.is_contiguous()) return std::nullopt;
  return StridedView(tensor.sizes().data(), tensor.strides().data(), tensor.dim());
}

double next_step(double step, size_t i) {
  require(is_step_count(step), "Invalid step=", step, " of params[", i, "]: must be a whole number in [0, 2**53)");
  return step + 1;
}

ListStep list_step(const StepArguments& arguments, const void* hyper) {
  const double keep_prob = arguments.keep_prob.read();
  require(keep_prob >= 0 && keep_prob <= 1, "Invalid keep_prob=", keep_prob, ": must be in [0, 1]");
  return {
      .hyper = hyper, .scalars = arguments.scalars(), .seed = arguments.seed, .threshold = keep_threshold(keep_prob)};
}

// The work of one step and the layouts it points to.
class CheckedWork {
 public:
  CheckedWork(const Operands& operands, const ListStep& step, const RuleEntry& rule)
      : operands_(operands), rule_(rule) {
    work.step = step;
    with_active_isa([this](auto isa) {
      work.slice_functions = &slice_functions<decltype(isa)>();
      work.step_slabs = step_slabs<decltype(isa)>;
      work.shard_functions = &kShardFunctions<decltype(isa)>;
    });
    if (operands.table) {
      add_rows();
      return;
    }
    check_length(operands.grads.size(), "grads");
    check_length(operands.steps.size(), "steps");
    check_length(operands.param_indices.size(), "param_indices");
    if (rule.advance) check_length(operands.scalars.size(), "scalars");
    for (const auto& list : operands.states) {
      if (!list.empty()) check_length(list.size(), "states");
    }
    const size_t numbers = operands.index_maps.size();
    for (const auto* list : {&operands.mirrors, &operands.lows, &operands.changes}) {
      if (!list->empty()) check_length(list->size(), "mirrors, lows or changes");
    }
    require(numbers == 0 || numbers == 3 * operands.params.size(), "Invalid index_maps: ", numbers, " integers for ",
            operands.params.size(), " params");
    work.tensors.reserve(operands.params.size());
    for (size_t i = 0; i < operands.params.size(); ++i) add(i);
  }

  // Counts the step of every tensor, and advances the rule's scalars.
  void write_steps() const {
    for (size_t i = 0; i < steps_.size(); ++i) *steps_[i] = work.tensors[i].step.count;
    for (size_t i = 0; i < scalars_.size(); ++i) *scalars_[i] = work.tensors[i].step.scalar;
  }

  ListWork work;

 private:
  void check_length(size_t size, const char* name) const {
    require(size == operands_.params.size(), "Invalid ", name, ": ", size, " tensors for ", operands_.params.size(),
            " params");
  }

  void check_operand(const Tensor& tensor, IntArray sizes, const char* name, size_t i) const {
    require(on_cpu(tensor), "Invalid ", name, "[", i, "]: must be on the CPU");
    const IntArray own = tensor.sizes();
    require(own.size() == sizes.size() && std::equal(own.begin(), own.end(), sizes.begin()), "Invalid ", name, "[", i,
            "]: its shape differs from params[", i, "]");
    require_memory(tensor, name, i);
  }

  void check_double(const Tensor& tensor, const char* name, size_t i) const {
    require(on_cpu(tensor) && tensor.numel() == 1 && dtype_of(tensor) == Dtype::kDouble, "Invalid ", name, "[", i,
            "]: must be one float64 on the CPU");
    require_memory(tensor, name, i);
  }

  // A ring lies contiguously, whatever the layout of the parameter.
  void check_ring(const Tensor& tensor, IntArray sizes, size_t i) const {
    const IntArray own = tensor.sizes();
    require(on_cpu(tensor) && tensor.is_contiguous() && own.size() == sizes.size() + 1 && own[0] == operands_.window &&
                std::equal(sizes.begin(), sizes.end(), own.begin() + 1),
            "Invalid states[", i, "]: must be contiguous on the CPU, ", operands_.window, " times params[", i, "]");
    require_memory(tensor, "states", i);
  }

  void add(size_t i) {
    const Tensor &param = operands_.params[i], &grad = operands_.grads[i], &step = operands_.steps[i];
    const std::optional<Dtype> dtype = dtype_of(param);
    const IntArray sizes = param.sizes();
    check_operand(param, sizes, "params", i);
    check_operand(grad, sizes, "grads", i);
    check_double(step, "steps", i);
    if (rule_.advance) check_double(operands_.scalars[i], "scalars", i);
    TensorWork tensor = {};
    double* const scalar = rule_.advance ? static_cast<double*>(operands_.scalars[i].mutable_data_ptr()) : nullptr;
    set_step(tensor, static_cast<double*>(step.mutable_data_ptr()), scalar, i);
    set_range(tensor, param.mutable_data_ptr(), grad.const_data_ptr(), param.numel(), operands_.param_indices[i]);
    if (!operands_.index_maps.empty()) {
      const int64_t* const map = &operands_.index_maps[3 * i];
      set_map(tensor, {map[0], map[1], map[2]}, i);
    }
    if (operands_.centralize && sizes.size() > 1 && param.numel() != 0) tensor.slice_length = param.numel() / sizes[0];
    Layouts layouts = {view_of(param), view_of(grad), {}};
    bool strided = layouts.param || layouts.grad;
    bool overlap = layouts.param && layouts.param->may_overlap();
    std::optional<Dtype> state_dtype = dtype;
    int used = 0;  // states that a variant lacks are empty lists; the rest close up
    for (const auto& list : operands_.states) {
      if (list.empty()) continue;
      if (operands_.window != 0) {
        check_ring(list[i], sizes, i);
      } else {
        check_operand(list[i], sizes, "states", i);
      }
      const std::optional<Dtype> own = dtype_of(list[i]);
      require(used == 0 || own == state_dtype, "Invalid states[", i, "]: their dtypes differ");
      state_dtype = own;
      auto& layout = layouts.states[used] = view_of(list[i]);
      strided = strided || layout;
      overlap = overlap || (layout && layout->may_overlap());
      tensor.whole.states[used++] = list[i].mutable_data_ptr();
    }
    require(!overlap, "Invalid params[", i, "]: elements of it or of a state share memory");
    const std::optional<Stage> stage = stage_of(operands_, i, state_dtype, rule_.kernel_of);
    set_kernel(tensor, dtype, state_dtype, i, stage.has_value());
    if (stage) set_stage(tensor, *stage, strided, i);
    if (strided) {
      if (operands_.window == 0) tensor.slab = slab_of(layouts, used);
      tensor.layouts = &layouts_.emplace_back(std::move(layouts));
    }
    work.add(tensor);
  }

  void add_rows() {
    const TableRow* rows = cpu_rows(*operands_.table);
    const size_t size = static_cast<size_t>(operands_.table->size(0));
    require(operands_.state_mask >> kMaxStates == 0, "Invalid state_mask=", operands_.state_mask);
    work.tensors.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      const TableRow& row = rows[i];
      TensorWork tensor = {};
      check_row(row, i);
      set_step(tensor, reinterpret_cast<double*>(row.step), reinterpret_cast<double*>(row.scalar), i);
      set_range(tensor, reinterpret_cast<void*>(row.param), reinterpret_cast<const void*>(row.grad), row.numel,
                row.param_index);
      set_map(tensor, row.map, i);
      for (int k = 0; k < kMaxStates; ++k) tensor.whole.states[k] = reinterpret_cast<void*>(row.states[k]);
      tensor.slice_length = row.slice_length;
      tensor.slab = {row.slab, row.channels};
      const std::optional<Stage> stage = stage_of(row, operands_.stochastic, i, rule_.kernel_of);
      set_kernel(tensor, static_cast<Dtype>(row.param_dtype), static_cast<Dtype>(row.state_dtype), i,
                 stage.has_value());
      if (stage) set_stage(tensor, *stage, row.slab != 0, i);
      work.add(tensor);
    }
  }

  void check_row(const TableRow& row, size_t i) const {
    bool there =
        row.step != 0 && (!rule_.advance || row.scalar != 0) && (row.numel == 0 || (row.param != 0 && row.grad != 0));
    for (int k = 0; k < std::popcount(static_cast<uint64_t>(operands_.state_mask)) && row.numel != 0; ++k) {
      there = there && row.states[k] != 0;
    }
    require(there && row.numel >= 0, "Invalid table: row ", i, " lacks an address");
    if (row.slab == 0) return;
    require(row.slab > 0 && row.slab <= kMaxSlab && row.numel % row.slab == 0 && row.channels > 0 &&
                row.slab % row.channels == 0 && row.slice_length == 0 && !operands_.sums,
            "Invalid table: row ", i, " cannot be stepped in channels_last");
  }

  void set_step(TensorWork& tensor, double* step, double* scalar, size_t i) {
    tensor.step.count = next_step(*step, i);
    steps_.push_back(step);
    if (!rule_.advance) return;
    tensor.step.scalar = rule_.advance(rule_.hyper, tensor.step.count, *scalar);
    scalars_.push_back(scalar);
  }

  static void set_range(TensorWork& tensor, void* param, const void* grad, int64_t numel, int64_t param_index) {
    tensor.step.param_index = static_cast<uint32_t>(param_index);
    tensor.step.numel = numel;
    tensor.whole = {.param = param, .grad = grad, .states = {}, .first_tile = 0, .count = numel};
  }

  static void set_map(TensorWork& tensor, const IndexMap& map, size_t i) {
    require(fits(map, tensor.step.numel), "Invalid index_maps[", i, "]=(", map.base, ", ", map.run, ", ", map.pitch,
            "): no shard of ", tensor.step.numel, " elements has it");
    tensor.set_map(map);
  }

  void set_stage(TensorWork& tensor, const Stage& stage, bool strided, size_t i) {
    require(!strided && tensor.slice_length == 0 && operands_.window == 0, "Invalid params[", i,
            "]: strided, centralized or with a ring, and stored otherwise than it is stepped");
    Stage& own = stages_.emplace_back(stage);
    if (!tensor.map.is_whole()) own.map = &maps_.emplace_back(tensor.map);
    tensor.stage = &own;
  }

  void set_kernel(TensorWork& tensor, std::optional<Dtype> dtype, std::optional<Dtype> state_dtype, size_t i,
                  bool staged = false) const {
    const auto kernel = [&] {
      return staged ? rule_.kernel_of(Dtype::kFloat, Dtype::kFloat) : rule_.kernel_of(*dtype, *state_dtype);
    };
    tensor.kernel = dtype && state_dtype ? kernel() : nullptr;
    require(tensor.kernel, "Invalid params[", i, "]: no kernel for its dtype with the dtype of its states");
    tensor.dtype = *dtype;
    tensor.param_size = static_cast<uint8_t>(size_of(*dtype));
    tensor.step.prefetch = prefetch_policy(tensor.param_size);
    tensor.state_size = static_cast<uint8_t>(size_of(*state_dtype));
  }

  const Operands& operands_;
  const RuleEntry& rule_;
  std::vector<double*> steps_, scalars_;
  std::deque<Layouts> layouts_;  // stable addresses
  std::deque<Stage> stages_;
  std::deque<IndexMap> maps_;
};

void check_sums(const Tensor& sums) {
  require(on_cpu(sums) && is_number_of_sums(sums.numel()) && sums.is_contiguous() && dtype_of(sums) == Dtype::kDouble,
          "Invalid sums: must be 1 or ", kSumsAndCount, " float64 on the CPU");
}

int64_t elements_of(const ListWork& work) {
  int64_t elements = 0;
  for (const TensorWork& tensor : work.tensors) elements += tensor.step.numel;
  return elements;
}

// After the step: what its sums have become.
void add_sums(const ListWork& work, double inverse_grad_scale, double* sums) {
  sums[kSlope] = sums[kSlope] + work.sum(kSlope) * inverse_grad_scale;
  if (work.sums == 1) return;
  for (int k = kSlope + 1; k < kSums; ++k) sums[k] = sums[k] + work.sum(k);
  sums[kSums] = sums[kSums] + static_cast<double>(elements_of(work));
}

}  // namespace

void run(const Operands& operands, const StepArguments& arguments, const RuleEntry& rule) {
  CheckedWork checked(operands, list_step(arguments, rule.hyper), rule);
  if (operands.sums) check_sums(*operands.sums);
  if (arguments.skips()) return;
  ListWork& work = checked.work;
  if (operands.sums) work.sums = operands.sums->numel() == 1 ? 1 : kSums;
  const std::unique_ptr<double[]> tile_sums(work.sums ? new double[work.sums * work.tiles]
                                                      : nullptr);  // each will be written
  work.tile_sums = tile_sums.get();
  checked.write_steps();
  torch::stable::parallel_for(0, work.tiles, kGrainTiles, [&](int64_t begin, int64_t end) { work.run(begin, end); });
  if (!operands.sums) return;
  add_sums(work, arguments.inverse_grad_scale(), static_cast<double*>(operands.sums->mutable_data_ptr()));
}

void check_table(Tensor table) {
  const TableRow* rows = cpu_rows(table);
  for (int64_t i = 0; i < table.size(0); ++i) next_step(*reinterpret_cast<const double*>(rows[i].step), i);
}

}  // namespace lrt::cpu
