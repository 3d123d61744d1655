// A tile's share of the slope (core/slope.h).
#pragma once

#include "core/slope.h"

namespace lrt::cpu {

// A tile's slope from those of its lanes. Out of line: in a loop's body it is not vectorised.
template <class Isa, class Param>
__attribute__((noinline)) double tile_slope(const Real<Param> (&lanes)[kLanes]) {
  Real<Param> units[kTileUnits<Param>];
  for (int u = 0; u < kTileUnits<Param>; ++u) {
    units[u] = slope_unit<kSlopeLanes<Param>>(lanes + u * kSlopeLanes<Param>);
  }
  return slope_sum(units, kTileUnits<Param>);
}

}  // namespace lrt::cpu
