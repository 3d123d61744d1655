// See host_objects.h.
#include "host_objects.h"

namespace lrt {
namespace {

constexpr int64_t kDiffer = -1;

// The entries of a dict, compared with those from `place` on: where they end, or kDiffer.
template <class Visit>
int64_t compare(NextEntry next, void* dict, const DictEntry* entries, int64_t count, int64_t place,
                const Visit& visit) {
  intptr_t position = 0;
  void *key, *value;
  while (place != kDiffer && next(dict, &position, &key, &value)) {
    const bool same = place < count && reinterpret_cast<int64_t>(key) == entries[place].key &&
                      reinterpret_cast<int64_t>(value) == entries[place].value;
    place = same ? visit(value, place + 1) : kDiffer;
  }
  return place;
}

}  // namespace
}  // namespace lrt

void lrt_ask_for(const lrt::HostTensor* tensors, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    lrt::ask_for(tensors[i].object, lrt::kOfObject);
    lrt::ask_for(tensors[i].implementation, lrt::kOfImplementation);
    lrt::ask_for(tensors[i].storage, lrt::kOfStorage);
  }
}

int lrt_has_entries(lrt::NextEntry next, void* dict, const lrt::DictEntry* entries, int64_t count) {
  const auto inner = [=](void* value, int64_t place) {
    return lrt::compare(next, value, entries, count, place, [](void*, int64_t after) { return after; });
  };
  return lrt::compare(next, dict, entries, count, 0, inner) == count;
}
