// Whether a step has the operands of the one before, told in one pass over the host's own objects. The functions are
// handed addresses of objects and of what Python and torch publish of them by lrtricks_fused/step/record.py, which
// holds the objects meanwhile, and Python's lock.
#pragma once

#include <cstdint>

#include "host_objects.h"

namespace lrt {

// What is known of the objects: functions, and where in an object lies what Python can say of it, in bytes.
struct HostLayout {
  NextEntry next_entry;
  intptr_t (*list_size)(void* list);
  void* (*list_item)(void* list, intptr_t place);
  void (*take_reference)(void* object);
  void (*drop_reference)(void* object);
  const void* (*grad_of)(const void* implementation);  // where its gradient's implementation is named
  void (*bump_version)(const void* handle);  // by which graphs know that a tensor has changed; null: not found
  int64_t type, implementation;              // in a tensor's object
  int64_t storage, keys, object;             // in its implementation in C++; -1: not found
  // There, too, its sizes, with their number before and its strides behind them, and the word of its dtype and device;
  // and in its storage what says where and how large that is, and who frees it. -1, of all: not found.
  int64_t sizes, offset, kind;
  int64_t data, bytes, deleter;
};

// An entry of a dict or list, or the end of one. After an entry that is a dict or list come those that it has.
enum class HostEntryKind : int64_t { kObject, kScheduled, kDict, kList, kEnd };
struct HostEntry {
  int64_t key, value;  // the objects' addresses
  HostEntryKind kind;  // kScheduled: a number that may be another, which is told
};

// A tensor that stays, one float64 on the CPU that counts steps, the gradient of the row before, which may have moved,
// or that the row before has no gradient. Of what is wrapped: a parameter's wrapper, the tensor in the wrapper that is
// the gradient of the row before, and a parameter or a state that stays in its wrapper.
enum class StepTensorRole : int64_t {
  kHeld,
  kCount,
  kGradient,
  kNone,
  kWrapper,
  kWrappedGradient,
  kWrappedParam,
  kWrappedState
};

// What is given of a row.
struct StepTensorOf {
  StepTensorRole role;
  uint64_t object;  // 0: a gradient, which its tensor knows and which gets its number here, or none
  union {
    uint64_t* slot;    // of a gradient: where a table has its address; of a parameter: not null
    uint64_t wrapper;  // of what is wrapped: that object
  };
};

// A row of the record, read off the tensor; 2 * dims words follow it, its sizes and then its strides. What only some
// rows have shares its place with what these have not: a row is as small as can be, because all are read at each step.
struct StepTensor {
  StepTensorOf of;
  union {
    uint64_t type;
    uint64_t outer_object;  // of the wrapper of a gradient, the last time
    uint64_t wrapper_spec;  // of a parameter or a state in its wrapper
  };
  union {
    uint64_t version;  // where a parameter's is counted, which is only asked for; else 0
    uint64_t outer_implementation;
  };
  uint64_t implementation, storage;
  uint64_t handle;  // where its implementation is named
  uint64_t keys, address;
  union {
    uint64_t moved_to;  // of a gradient, while it is looked at
    uint64_t deleter;
  };
  uint64_t kind;
  int64_t extent;  // elements from its first to its last in memory
  int32_t dtype;
  int16_t device, itemsize;
  int64_t dims;
};

inline int64_t* layout_of(StepTensor& row) { return reinterpret_cast<int64_t*>(&row + 1); }

inline StepTensor& next(StepTensor& row) { return *reinterpret_cast<StepTensor*>(layout_of(row) + 2 * row.dims); }

inline bool is_in_wrapper(const StepTensor& row) {
  return row.of.role == StepTensorRole::kWrappedParam || row.of.role == StepTensorRole::kWrappedState;
}

inline bool is_gradient(const StepTensor& row) {
  return row.of.role == StepTensorRole::kGradient || row.of.role == StepTensorRole::kWrappedGradient;
}

// The wrappers of a step (DTensors): their type, that of the tensors in them, and where in an object its slots are.
struct HostWrapper {
  uint64_t type, wrapped_type;
  int64_t wrapped, spec;
};

// By which a gradient is held: a handle of C++'s, and what it names; or, of what is in a wrapper, a reference to the
// object, whose handle is 0.
struct HeldGradient {
  uint64_t handle;
  union {
    uint64_t implementation;
    uint64_t object;
  };
};

// The rows lie in blocks, each of which can be looked at by itself: a row that asks for the one before begins none.
struct StepRecord {
  const HostEntry* entries;
  const HostWrapper* wrapper;  // null: there is none
  uint64_t* tensors;           // the rows
  const int64_t* blocks;       // where each block begins, in words, and where the last one ends
  int64_t count;               // of blocks
  HeldGradient* held;          // one for each gradient
  const uint64_t* specs;       // by which each gradient is cut that is in a wrapper
  int64_t gradients;
};

// What is told of a step, bits.
enum StepIs { kOther = 0, kSame = 1, kOfOtherNumbers = 2, kOfMovedGradients = 4, kCounted = 8 };

}  // namespace lrt

extern "C" {

// Whether the caller's structures are as large as these, in bytes: it may be of other sources.
__attribute__((visibility("default"))) int lrt_fits(int64_t layout, int64_t wrapper, int64_t record, int64_t row);

// Fills the record's rows. Returns whether all tensors say what is asked of them.
__attribute__((visibility("default"))) int lrt_record(const lrt::HostLayout* layout, const lrt::StepTensorOf* given,
                                                      const lrt::StepRecord* record);

// Whether the attributes of an optimizer, a dict, and the tensors are those of the record: bits of StepIs. Where they
// are, the gradients are held until lrt_let_go, and the slots of those that have moved say so; if it counts and no
// number is another, lrt_count_versions is done, too. Where not all is the same, nothing has been written, and nothing
// is held.
__attribute__((visibility("default"))) int lrt_repeats(const lrt::HostLayout* layout, const lrt::StepRecord* record,
                                                       void* attributes, int counts);

// Whether all tensors of a record without gradients are what and where they were: 1, or 0.
__attribute__((visibility("default"))) int lrt_tensors_have_stayed(const lrt::HostLayout* layout,
                                                                   const lrt::StepRecord* record);

// Has the parameters that have a gradient count a version more; returns whether that can be told.
__attribute__((visibility("default"))) int lrt_count_versions(const lrt::HostLayout* layout,
                                                              const lrt::StepRecord* record);

// Holds the gradients no longer. Their last owner may be this one.
__attribute__((visibility("default"))) void lrt_let_go(const lrt::HostLayout* layout, const lrt::StepRecord* record);
}
