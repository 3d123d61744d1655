// The host's own objects between steps: whether dicts are what they were, and tensors that will be looked at. Knows
// neither torch nor Python: it is handed addresses, and functions of theirs, by lrtricks_fused/step/host.py, which
// holds the objects meanwhile, and Python's lock.
#pragma once

#include <cstdint>

#include "cpu/prefetch.h"

namespace lrt {

// Bytes of an object, from one to before another: what is read of it, at most. An error costs time alone.
struct Read {
  uint64_t begin, end;
};
constexpr uint64_t kLine = 64;
constexpr Read kOfObject = {8, 24}, kOfImplementation = {16, 176}, kOfStorage = {16, 64}, kOfVersion = {16, 24};
constexpr Read kOfWrapper = {8, 64}, kOfSlots = {48, 64}, kOfWrapperImplementation = {24, 56}, kOfWord = {0, 8};
constexpr Read kOfCount = {8, 16}, kOfObjectWord = {48, 56};  // of owners; what names the object of an implementation

// Asks for the lines of the object at an address that will be read.
inline void ask_for(uint64_t object, Read read) {
  for (uint64_t line = (object + read.begin) / kLine * kLine; line < object + read.end; line += kLine) {
    cpu::ask<cpu::Hint::kFirst>(reinterpret_cast<const void*>(line));
  }
}

// A tensor: its object in Python, that of C++ and its storage, which are asked for ahead, and may be others by now.
struct HostTensor {
  int64_t object, implementation, storage;
};

struct DictEntry {
  int64_t key, value;
};

using NextEntry = int (*)(void* dict, intptr_t* place, void** key, void** value);  // 0: there are no more

}  // namespace lrt

extern "C" {

// Asks for the lines that a look at the tensors will read.
__attribute__((visibility("default"))) void lrt_ask_for(const lrt::HostTensor* tensors, int64_t count);

// Whether a dict of dicts has these entries and no others: each of its own followed by those of the value.
__attribute__((visibility("default"))) int lrt_has_entries(lrt::NextEntry next, void* dict,
                                                           const lrt::DictEntry* entries, int64_t count);
}
