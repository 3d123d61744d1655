// Whether slots of the host's own objects hold what they did. Knows neither torch nor Python: it is handed addresses by
// lrtricks_fused/step/slots.py, which holds the objects meanwhile, and Python's lock.
#pragma once

#include <cstdint>

namespace lrt {

// A word in an object, and the address of the other object that it named.
struct HostSlot {
  int64_t place, value;
};

}  // namespace lrt

extern "C" {

// Whether all slots name the same objects: 1, or 0.
__attribute__((visibility("default"))) int lrt_slots_hold(const lrt::HostSlot* slots, int64_t count);
}
