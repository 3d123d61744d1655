// LOSSGRAD (Wojcik, Maziarka, Tabor, arXiv 1902.07656): what the losses before and after a step say of its size h.
#pragma once

#include "core/numeric.h"

namespace lrt {

struct LossGrad {
  double ratio, factor;  // r, and what h is multiplied by
};

// `slope` is <gradient, displacement>. Where it is positive but, as the loss's rise, below the resolution of the loss
// (relative to it), r cannot be measured and h grows.
LRT_HD LossGrad lossgrad(double loss, double trial, double slope, double c, double resolution) {
  const double rise = trial - loss, error = rise + slope;
  const bool finite = std::fabs(trial) < HUGE_VAL;
  const bool unresolved =
      slope > 0 && (slope > std::fabs(rise) ? slope : std::fabs(rise)) < std::fabs(loss) * resolution;
  const bool grows = error + rise <= 0 || unresolved;  // false for NaN
  return {error / slope, finite && slope == 0 ? 1.0 : finite && grows ? c : 1.0 / c};
}

}  // namespace lrt
