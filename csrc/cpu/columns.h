// Sums in columns on the CPU (core/slope.h): of the chunks of a step's slope, of a gradient's squares, and of norms.
#pragma once

#include <algorithm>

#include "core/slope.h"

namespace lrt::cpu {

class Columns {
 public:
  void add(double value) {
    double& column = columns_[count_++ % kSlopeColumns];
    column = column + value;
  }
  // The chunks of a tensor, from the sums of its tiles.
  void add_chunks(const double* tile_sums, int64_t tiles) {
    for (int64_t tile = 0; tile < tiles; tile += kChunkTiles) {
      add(slope_sum(tile_sums + tile, std::min(kChunkTiles, tiles - tile)));
    }
  }
  double sum() const { return slope_sum(columns_, std::min(count_, kSlopeColumns)); }  // the others are 0

 private:
  double columns_[kSlopeColumns] = {};
  int64_t count_ = 0;
};

}  // namespace lrt::cpu
