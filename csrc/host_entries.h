// Whether dicts and lists have the entries of a record (host_step.h).
#pragma once

#include "host_step.h"

namespace lrt {

// Compares containers with the rows of a record.
class Entries {
 public:
  explicit Entries(const HostLayout& layout, const HostEntry* row) : layout_(layout), row_(row) {}

  bool match(void* container, bool is_list) { return is_list ? match_list(container) : match_dict(container); }

  bool of_other_numbers = false;

 private:
  bool match_dict(void* dict) {
    intptr_t position = 0;
    void *key, *value;
    while (layout_.next_entry(dict, &position, &key, &value)) {
      if (!match_one(reinterpret_cast<int64_t>(key), value)) return false;
    }
    return (row_++)->kind == HostEntryKind::kEnd;
  }

  bool match_list(void* list) {
    const intptr_t size = layout_.list_size(list);
    for (intptr_t i = 0; i < size; ++i) {
      if (!match_one(0, layout_.list_item(list, i))) return false;
    }
    return (row_++)->kind == HostEntryKind::kEnd;
  }

  bool match_one(int64_t key, void* value) {
    const HostEntry& entry = *row_++;
    if (entry.kind == HostEntryKind::kEnd || entry.key != key) return false;
    if (entry.value != reinterpret_cast<int64_t>(value)) {
      if (entry.kind != HostEntryKind::kScheduled) return false;
      of_other_numbers = true;
    }
    const bool is_list = entry.kind == HostEntryKind::kList;
    return (!is_list && entry.kind != HostEntryKind::kDict) || match(value, is_list);
  }

  const HostLayout& layout_;
  const HostEntry* row_;
};

}  // namespace lrt
