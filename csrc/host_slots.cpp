// See host_slots.h.
#include "host_slots.h"

#include "cpu/prefetch.h"

int lrt_slots_hold(const lrt::HostSlot* slots, int64_t count) {
  constexpr int64_t kAhead = 32;  // slots
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      lrt::cpu::ask<lrt::cpu::Hint::kFirst>(reinterpret_cast<const void*>(slots[i + kAhead].place));
    }
    if (*reinterpret_cast<const int64_t*>(slots[i].place) != slots[i].value) return 0;
  }
  return 1;
}
