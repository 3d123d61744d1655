// The table of addresses a step over a list of tensors reads (lrtricks_fused/step/table.py makes it).
#pragma once

#include <cstdint>

#include "core/index_map.h"
#include "core/update.h"

namespace lrt {

// One parameter. Its operands lie contiguously, or all in channels_last: then `slab` elements belong to
// one index of dimension 0, and `channels` to one of them and of the later dimensions. The states that the variant has
// come first, the rest are 0.
struct TableRow {
  int64_t param, grad, states[kMaxStates], step, numel, param_index, param_dtype, state_dtype, first_chunk,
      slice_length, first_slice, first_partial,  // of its slices (core/slice_mean.h); a length of 0: none
      scalar,                                    // of its rule (core/record.h), or 0
      mirror, low, changes,                      // of a tensor that is stored otherwise than it is stepped, or 0
      grad_dtype, mirror_dtype,                  // codes, as the others
      slab, channels;                            // 0: contiguous
  IndexMap map;
};

}  // namespace lrt
