// See step_slabs in engine.h.
#include "cpu/engine.h"
#include "cpu/lanes.h"

namespace lrt::cpu {
namespace {

// The decisions of a slab, in the order of indices and of memory; not on the stack, which may be small.
struct Buffers {
  alignas(64) int32_t of_indices[kMaxSlab + 2 * kTile], of_memory[kMaxSlab];
};
thread_local Buffers buffers;

// The decisions of the slab that begins with that element.
template <class Isa>
const int32_t* decide_slab(const ListStep& list, const TensorWork& tensor, int64_t begin) {
  int32_t* const keeps = buffers.of_indices;
  if (!tensor.map.is_whole()) {
    decide_shard<Isa>(list, tensor, begin, tensor.slab.elements, keeps);
    return keeps;
  }
  const int64_t first_tile = begin / kTile, last_tile = (begin + tensor.slab.elements - 1) / kTile;
  for (int64_t tile = first_tile; tile <= last_tile; ++tile) {
    decide_tile<Isa>(keep_stream(list, tensor.step), list.threshold, tensor.whole.first_tile + tile,
                     *reinterpret_cast<TileKeeps*>(keeps + (tile - first_tile) * kTile));
  }
  return keeps + begin % kTile;
}

}  // namespace

template <class Isa>
void step_slabs(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t last) {
  if (first >= last) return;
  const auto [slab, channels] = tensor.slab;
  if (!is_masked(list.threshold)) {
    return tensor.kernel(list, tensor.step, tensor.part(first * slab, (last - first) * slab));
  }
  const int64_t places = slab / channels;  // of a channel
  Buffers& own = buffers;
  for (int64_t begin = first * slab; begin < last * slab; begin += slab) {
    const int32_t* const from = decide_slab<Isa>(list, tensor, begin);
    for (int64_t place = 0; place < places; ++place) {
      int32_t* const to = own.of_memory + place * channels;
      for (int64_t channel = 0; channel < channels; ++channel) to[channel] = from[channel * places + place];
    }
    Range part = tensor.part(begin, slab);
    part.keeps = own.of_memory;
    tensor.kernel(list, tensor.step, part);
  }
}

template void step_slabs<LRT_ISA>(const ListStep&, const TensorWork&, int64_t, int64_t);

}  // namespace lrt::cpu
