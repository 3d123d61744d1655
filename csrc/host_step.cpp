// See host_step.h.
#include "host_step.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "host_entries.h"
#include "host_look.h"

namespace lrt {
namespace {

constexpr int64_t kAhead = 16;       // rows
constexpr int64_t kGrainBlocks = 4;  // as many as a thread is worth

uint64_t gradient_of(const HostLayout& layout, uint64_t implementation) {
  return reinterpret_cast<uint64_t>(layout.grad_of(reinterpret_cast<const void*>(implementation)));
}

// Where the implementation of the owner's gradient is named; 0: it is not what the row takes it for. A wrapper must be
// cut by the object that is known to cut it as the owner is; the gradient is what is in it.
uint64_t handle_of_gradient(const HostLayout& layout, const StepRecord& record, StepTensor& row,
                            const StepTensor& owner) {
  const uint64_t handle = gradient_of(layout, owner.implementation);
  if (row.of.role != StepTensorRole::kWrappedGradient) return handle;
  row.outer_implementation = word(handle, 0);
  const uint64_t object = object_of(layout, row.outer_implementation);  // of a gradient that is undefined there is none
  row.outer_object = object;
  const HostWrapper& wrapper = *record.wrapper;
  if (object == 0 || word(object, layout.type) != wrapper.type) return 0;
  if (word(object, wrapper.spec) != record.specs[row.of.object]) return 0;
  const uint64_t wrapped = word(object, wrapper.wrapped);
  return wrapped != 0 && word(wrapped, layout.type) == wrapper.wrapped_type ? wrapped + layout.implementation : 0;
}

// The gradient gets one owner more: while kernels read it, anyone may drop it.
bool hold(HeldGradient& held, uint64_t handle) {
  AtenTensorHandle own = nullptr;
  if (aoti_torch_new_tensor_handle(handle_of(handle), &own) != AOTI_TORCH_SUCCESS) return false;
  held.handle = reinterpret_cast<uint64_t>(own);
  held.implementation = word(handle, 0);
  return true;
}

// What Python owns gets one reference more, which keeps what it is in C++, too; by one thread, which has Python's lock.
void hold_wrapped(const HostLayout& layout, const StepRecord& record) {
  for (const HeldGradient* held = record.held; held != record.held + record.gradients; ++held) {
    if (held->handle == 0 && held->object != 0) layout.take_reference(reinterpret_cast<void*>(held->object));
  }
}

// By one thread, which has Python's lock: the owner that goes may be the last.
void let_go(const HostLayout& layout, const StepRecord& record) {
  for (int64_t i = 0; i < record.gradients; ++i) {
    if (i + kAhead < record.gradients) {
      ask_for(record.held[i + kAhead].handle, kOfWord);
      ask_for(record.held[i + kAhead].implementation, kOfCount);
    }
    const HeldGradient held = record.held[i];
    record.held[i] = {};
    if (held.handle != 0) {
      aoti_torch_delete_tensor_object(handle_of(held.handle));
    } else if (held.object != 0) {
      layout.drop_reference(reinterpret_cast<void*>(held.object));
    }
  }
}

// Whether the gradient of a tensor can take the place of the one before; it is held then, or known which object is to
// be.
bool can_follow(const HostLayout& layout, const StepRecord& record, StepTensor& row, const StepTensor& owner) {
  const uint64_t handle = handle_of_gradient(layout, record, row, owner);
  if (handle == 0 || !is_like(layout, row, handle)) return false;
  HeldGradient& held = record.held[row.of.object];
  if (row.of.role == StepTensorRole::kGradient) return hold(held, handle);
  held.object = handle - layout.implementation;
  return true;
}

// Whether a tensor's wrapper still holds it, cut by the same object. Whatever becomes another is in the wrapper's
// slots.
bool is_still_wrapped(const HostWrapper& wrapper, const StepTensor& row) {
  return word(row.of.wrapper, wrapper.wrapped) == row.of.object &&
         word(row.of.wrapper, wrapper.spec) == row.wrapper_spec;
}

bool is_as_before(const HostLayout& layout, const StepRecord& record, StepTensor& row, const StepTensor& before) {
  switch (row.of.role) {
    case StepTensorRole::kGradient:
    case StepTensorRole::kWrappedGradient: return can_follow(layout, record, row, before);
    case StepTensorRole::kNone: return !is_defined(gradient_of(layout, before.implementation));
    case StepTensorRole::kWrapper: return is_same_object(layout, row);
    case StepTensorRole::kWrappedParam:
    case StepTensorRole::kWrappedState: return is_still_wrapped(*record.wrapper, row) && has_stayed(layout, row);
    default: return has_stayed(layout, row);
  }
}

void ask(const StepTensor& row) {
  if (row.of.role == StepTensorRole::kWrappedGradient) {
    ask_for(row.outer_implementation, kOfObjectWord);
    ask_for(row.outer_object, kOfWrapper);
  } else if (is_in_wrapper(row)) {
    ask_for(row.of.wrapper, kOfSlots);
  } else if (!is_gradient(row)) {
    ask_for(row.of.object, kOfObject);
  }
  if (!is_gradient(row) && row.version != 0) ask_for(row.version, kOfVersion);
  if (row.of.role == StepTensorRole::kWrapper) return ask_for(row.implementation, kOfWrapperImplementation);
  if (!is_in_wrapper(row)) ask_for(row.handle, kOfWord);
  ask_for(row.implementation, kOfImplementation);
  ask_for(row.storage, kOfStorage);
  if (row.of.role == StepTensorRole::kCount) ask_for(row.address, kOfWord);
}

StepTensor* row_at(const StepRecord& record, int64_t block) {
  return reinterpret_cast<StepTensor*>(record.tensors + record.blocks[block]);
}

// Visits the rows of some blocks, each with the one before, until visit says no.
template <class Visit>
bool for_rows(const StepRecord& record, int64_t begin, int64_t end, const Visit& visit) {
  StepTensor* const last = row_at(record, end);
  for (StepTensor *row = row_at(record, begin), *before = row; row != last; before = row, row = &next(*row)) {
    if (!visit(*row, *before)) return false;
  }
  return true;
}

// The same of all blocks, by as many threads as are worth it. Python's lock is held for all of them: none runs Python.
template <class Visit>
void for_blocks(const StepRecord& record, const Visit& visit) {
  torch::stable::parallel_for(0, record.count, kGrainBlocks, visit);
}

// Whether all tensors are as before, and where the gradients are now. Asks ahead for what the next rows name.
bool are_as_before(const HostLayout& layout, const StepRecord& record, bool& moved) {
  std::atomic<bool> all_are = true, any_moved = false;
  for_blocks(record, [&](int64_t begin, int64_t end) {
    StepTensor *ahead = row_at(record, begin), *const last = row_at(record, end);
    for (int64_t i = 0; i < kAhead && ahead != last; ++i, ahead = &next(*ahead)) ask(*ahead);
    bool here_moved = false;
    const bool here_are = for_rows(record, begin, end, [&](StepTensor& row, const StepTensor& before) {
      if (ahead != last) {
        ask(*ahead);
        ahead = &next(*ahead);
      }
      if (!is_as_before(layout, record, row, before)) return false;
      here_moved = here_moved || (is_gradient(row) && row.moved_to != row.address);
      return true;
    });
    if (!here_are) all_are = false;
    if (here_moved) any_moved = true;
  });
  moved = any_moved;
  if (record.wrapper) hold_wrapped(layout, record);
  return all_are;
}

// Of the parameters that are stepped; of one in a wrapper the wrapper, too. Returns whether all can be written to here.
bool bump_versions(const HostLayout& layout, const StepRecord& record) {
  std::atomic<bool> all = true;
  const auto bump = [&](const StepTensor& row) { layout.bump_version(reinterpret_cast<const void*>(row.handle)); };
  for_blocks(record, [&](int64_t begin, int64_t end) {
    try {
      for_rows(record, begin, end, [&](StepTensor& row, const StepTensor& before) {
        if (is_gradient(row)) bump(before);
        if (before.of.role == StepTensorRole::kWrappedGradient) bump(row);
        return true;
      });
    } catch (...) {  // made in inference mode, which has ended
      all = false;
    }
  });
  return all;
}

void move_gradients(const StepRecord& record) {
  for_rows(record, 0, record.count, [](StepTensor& row, const StepTensor&) {
    if (is_gradient(row)) *row.of.slot = row.address = row.moved_to;
    return true;
  });
}

// Of a row whose tensor is in a wrapper.
bool fill_wrapped(const HostLayout& layout, const HostWrapper& wrapper, StepTensor& row) {
  row.wrapper_spec = word(row.of.wrapper, wrapper.spec);
  return word(row.of.wrapper, layout.type) == wrapper.type && is_still_wrapped(wrapper, row) &&
         object_of(layout, row.implementation) == row.of.object;
}

bool fill(const HostLayout& layout, const StepRecord& record, StepTensor& row, const StepTensor& before) {
  const StepTensorRole role = row.of.role;
  const bool is_param = role == StepTensorRole::kWrappedParam || (!is_in_wrapper(row) && row.of.slot);
  const bool needs_wrapper =
      role == StepTensorRole::kWrapper || role == StepTensorRole::kWrappedGradient || is_in_wrapper(row);
  if (needs_wrapper && (!record.wrapper || layout.object < 0)) return false;
  const bool of_owner = is_gradient(row) || role == StepTensorRole::kNone;
  row.handle = of_owner ? handle_of_gradient(layout, record, row, before) : row.of.object + layout.implementation;
  if (role == StepTensorRole::kNone) return !is_defined(row.handle);
  if (row.handle == 0) return false;
  row.implementation = word(row.handle, 0);
  // The word before the object's, as torch has it; were it another, a line would be asked for in vain.
  if (!of_owner && is_param && layout.object > 0) row.version = word(row.implementation, layout.object - 8);
  if (is_in_wrapper(row)) {
    if (!fill_wrapped(layout, *record.wrapper, row)) return false;
  } else if (!of_owner) {
    row.type = word(row.of.object, layout.type);
  }
  return role == StepTensorRole::kWrapper ? row.type == record.wrapper->type : read_tensor(layout, row);
}

}  // namespace
}  // namespace lrt

int lrt_fits(int64_t layout, int64_t wrapper, int64_t record, int64_t row) {
  return layout == sizeof(lrt::HostLayout) && wrapper == sizeof(lrt::HostWrapper) &&
         record == sizeof(lrt::StepRecord) && row == sizeof(lrt::StepTensor);
}

int lrt_record(const lrt::HostLayout* layout, const lrt::StepTensorOf* given, const lrt::StepRecord* record) {
  uint64_t gradients = 0;
  return lrt::for_rows(*record, 0, record->count, [&](lrt::StepTensor& row, const lrt::StepTensor& before) {
    row = {};
    row.of = *given++;
    if (lrt::is_gradient(row)) row.of.object = gradients++;
    return lrt::fill(*layout, *record, row, before);
  });
}

int lrt_tensors_have_stayed(const lrt::HostLayout* layout, const lrt::StepRecord* record) {
  bool moved = false;
  return lrt::are_as_before(*layout, *record, moved);
}

int lrt_count_versions(const lrt::HostLayout* layout, const lrt::StepRecord* record) {
  return layout->bump_version && lrt::bump_versions(*layout, *record);
}

void lrt_let_go(const lrt::HostLayout* layout, const lrt::StepRecord* record) { lrt::let_go(*layout, *record); }

int lrt_repeats(const lrt::HostLayout* layout, const lrt::StepRecord* record, void* attributes, int counts) {
  lrt::Entries entries(*layout, record->entries);
  if (!entries.match(attributes, false)) return lrt::kOther;
  bool moved = false;
  if (!lrt::are_as_before(*layout, *record, moved)) {
    lrt_let_go(layout, record);
    return lrt::kOther;
  }
  if (moved) lrt::move_gradients(*record);
  const bool counted = counts && !entries.of_other_numbers && lrt_count_versions(layout, record);
  return lrt::kSame | (entries.of_other_numbers ? lrt::kOfOtherNumbers : 0) | (moved ? lrt::kOfMovedGradients : 0) |
         (counted ? lrt::kCounted : 0);
}
