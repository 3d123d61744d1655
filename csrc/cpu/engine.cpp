// Splits a range of the list's tiles by tensor and hands each part to its kernel (see engine.h).
#include "cpu/engine.h"

#include <algorithm>

#include "cpu/columns.h"

namespace lrt::cpu {
namespace {

void* advance(const void* base, int64_t elements, int64_t element_size) {
  return const_cast<char*>(static_cast<const char*>(base)) + elements * element_size;
}

Range part_of(const ListWork& work, const TensorWork& tensor, int64_t first_tile, int64_t count) {
  Range part = tensor.part(first_tile * kTile, count);
  part.first_tile += first_tile;
  if (work.tile_sums) part.slopes = work.tile_sums + tensor.first_tile + first_tile;
  if (work.sums > 1) part.metrics_pitch = work.tiles;
  return part;
}

// Asks for the first lines of a tensor while the one before it is at work; within it, the kernel prefetches itself.
void prefetch_first_lines(const TensorWork& tensor) {
  static constexpr int64_t kBytes = 1024;
  const auto ask_first = [](const void* base, int64_t bytes) {
    ask_lines<Hint::kFirst>(base, std::min(bytes, kBytes));
  };
  ask_first(tensor.whole.param, tensor.step.numel * tensor.param_size);
  ask_first(tensor.whole.grad, tensor.step.numel * tensor.param_size);
  for (const void* state : tensor.whole.states) {
    if (state) ask_first(state, tensor.step.numel * tensor.state_size);
  }
}

// What a thread steps a block with; not on its stack, which may be small.
struct Buffers {
  alignas(64) char param[kBlock * 8], grad[kBlock * 8], centralized[kBlock * 8], states[kMaxStates][kBlock * 8];
  int64_t offsets[kBlock];
  double means[kBlock + 1], row_means[kMeansBlock / kLanes];
  int32_t keeps[kBlock];
};
thread_local Buffers buffers;

// Offsets of one block, computed once for operands that lie alike, as they nearly always do.
class BlockOffsets {
 public:
  BlockOffsets(int64_t first, int64_t count) : first_(first), count_(count) {}
  const int64_t* of(const StridedView& view) {
    if (!current_ || !(*current_ == view)) view.offsets(first_, count_, buffers.offsets);
    current_ = &view;
    return buffers.offsets;
  }

 private:
  int64_t first_, count_;
  const StridedView* current_ = nullptr;
};

// The means of the slices that a thread meets on its way through a tensor, each found once. It reads a slice just
// before it steps it, from memory into its cache.
class Means {
 public:
  Means(const TensorWork& tensor, const SliceFunctions& functions)
      : sliced_{tensor.whole.grad, tensor.layouts && tensor.layouts->grad ? &*tensor.layouts->grad : nullptr,
                tensor.dtype, tensor.slice_length},
        functions_(functions) {}

  // Elements [first, first + count), at most a block, whose gradients begin at part.grad: their means for the kernel,
  // where a row has one, else the gradient itself in a buffer.
  void centralize(int64_t first, int64_t count, Range& part) {
    const double* means = find(first, count);
    if (sliced_.length % kLanes != 0) {
      functions_.centralize(sliced_, part.grad, first, count, means, buffers.centralized);
      part.stored_grad = part.grad;
      part.grad = buffers.centralized;
      return;
    }
    const int64_t rows = (count + kLanes - 1) / kLanes, of_slice = sliced_.length / kLanes;
    int64_t end = std::min(rows, of_slice - first / kLanes % of_slice);  // of the first slice
    for (int64_t row = 0; row < rows; row = end, end = std::min(rows, end + of_slice)) {
      std::fill(buffers.row_means + row, buffers.row_means + end, *means++);
    }
    part.row_means = buffers.row_means;
  }

 private:
  // The means of the slices that these elements belong to.
  const double* find(int64_t first, int64_t count) {
    const int64_t begin = first / sliced_.length, end = (first + count - 1) / sliced_.length + 1;
    const bool goes_on = begin + 1 == end_;  // the slice that the block before ended in
    double* const means = buffers.means;
    if (goes_on) means[0] = means[begin - begin_];
    const int64_t found = begin + goes_on;
    functions_.find_means(sliced_, found, end, means + (found - begin));
    begin_ = begin;
    end_ = end;
    return means;
  }

  SlicedGrad sliced_;
  const SliceFunctions& functions_;
  int64_t begin_ = 0, end_ = 0;  // slices whose means are there
};

// Tiles [tile, end), at most a block of its kind, of a tensor with strided operands or a gradient to be centralized:
// these are gathered into buffers, and written back after the step. Or of a shard, whose decisions are. The thread's
// next block, if there is one, has as many.
void run_block(const ListWork& work, const TensorWork& tensor, int64_t tile, int64_t end, bool is_last, Means* means) {
  Buffers& own = buffers;
  static const Layouts kContiguous;
  const Layouts& layouts = tensor.layouts ? *tensor.layouts : kContiguous;
  const Range& whole = tensor.whole;
  const int64_t first = tile * kTile, count = std::min(end * kTile, tensor.step.numel) - first;
  BlockOffsets offsets(first, count);
  const auto fetch = [&](const std::optional<StridedView>& view, const void* base, int64_t size, void* buffer) {
    gather(base, offsets.of(*view), count, size, buffer);
    return buffer;
  };
  Range part = part_of(work, tensor, tile, count);
  if (layouts.param) part.param = fetch(layouts.param, whole.param, tensor.param_size, own.param);
  if (layouts.grad) part.grad = fetch(layouts.grad, whole.grad, tensor.param_size, own.grad);
  for (int k = 0; k < kMaxStates; ++k) {
    if (layouts.states[k]) part.states[k] = fetch(layouts.states[k], whole.states[k], tensor.state_size, own.states[k]);
  }
  TensorStep step = tensor.step;
  if (means) means->centralize(first, count, part);
  // Whole slices are read before their first element is stepped: this block asks for those of the next.
  if (part.row_means && !layouts.grad && !is_last) {
    step.prefetch.grad_bytes = (count + tensor.slice_length) * tensor.param_size;
  }
  if (work.draws_apart(tensor)) {
    work.shard_functions->decide(work.step, tensor, first, count, own.keeps);
    part.keeps = own.keeps;
  }
  tensor.kernel(work.step, step, part);
  for (int k = 0; k < kMaxStates; ++k) {
    if (!layouts.states[k]) continue;
    scatter(whole.states[k], offsets.of(*layouts.states[k]), count, tensor.state_size, own.states[k]);
  }
  if (layouts.param) scatter(whole.param, offsets.of(*layouts.param), count, tensor.param_size, own.param);
}

// Tiles [tile, end) of a tensor that is stored otherwise than it is stepped; of a shard a block at a time, whose
// decisions are drawn before.
void run_staged_tiles(const ListWork& work, const TensorWork& tensor, int64_t tile, int64_t end) {
  const bool apart = work.draws_apart(tensor);
  for (int64_t next; tile < end; tile = next) {
    next = apart ? std::min(end, tile + kBlock / kTile) : end;
    const int64_t first = tile * kTile;
    Range part = tensor.whole;
    part.count = std::min(next * kTile, tensor.step.numel) - first;
    part.first_tile += tile;
    part.stage = tensor.stage;
    part.stage_begin = first;
    if (work.tile_sums) part.slopes = work.tile_sums + tensor.first_tile + tile;
    if (work.sums > 1) part.metrics_pitch = work.tiles;
    if (apart) {
      work.shard_functions->decide(work.step, tensor, first, part.count, buffers.keeps);
      part.keeps = buffers.keeps;
    }
    tensor.kernel(work.step, tensor.step, part);
  }
}

}  // namespace

StridedView::Slab slab_of(const Layouts& layouts, int states) {
  bool alike = layouts.param && layouts.grad == layouts.param;
  for (int k = 0; k < states; ++k) alike = alike && layouts.states[k] == layouts.param;
  const StridedView::Slab slab = alike ? layouts.param->slab() : StridedView::Slab();
  return slab.elements <= kMaxSlab ? slab : StridedView::Slab();
}

Range TensorWork::part(int64_t first, int64_t count) const {
  Range part = {.param = advance(whole.param, first, param_size),
                .grad = advance(whole.grad, first, param_size),
                .states = {},
                .first_tile = whole.first_tile,
                .count = count};
  for (int k = 0; k < kMaxStates; ++k) {
    if (whole.states[k]) part.states[k] = advance(whole.states[k], first, state_size);
  }
  return part;
}

void TensorWork::set_map(const IndexMap& index_map) {
  const bool one_run = index_map.run >= step.numel || index_map.run == index_map.pitch;
  map = one_run && index_map.base % kTile == 0 ? IndexMap{} : index_map;
  if (map.is_whole()) whole.first_tile = index_map.base / kTile;
}

void ListWork::run(int64_t begin, int64_t end) const {
  if (begin >= end) return;
  auto tensor = std::upper_bound(tensors.begin(), tensors.end(), begin,
                                 [](int64_t tile, const TensorWork& t) { return tile < t.first_tile; }) -
                1;
  for (; begin < end; ++tensor) {
    const int64_t tensor_end = std::min(end, tensor + 1 == tensors.end() ? tiles : (tensor + 1)->first_tile);
    if (tensor_end <= begin) continue;  // an empty tensor
    if (tensor + 1 != tensors.end()) prefetch_first_lines(tensor[1]);
    const int64_t first = begin - tensor->first_tile, last = tensor_end - tensor->first_tile;
    if (tensor->stage) {
      run_staged_tiles(*this, *tensor, first, last);
    } else if (tensor->slab.elements && !tensor->slice_length && !tile_sums) {
      // Those slabs whose first element is in these tiles, to their ends.
      const int64_t slab = tensor->slab.elements, slabs = tensor->step.numel / slab;
      const auto slabs_before = [=](int64_t tile) { return (tile * kTile + slab - 1) / slab; };
      step_slabs(step, *tensor, slabs_before(first), std::min(slabs_before(last), slabs));
    } else if (tensor->layouts || tensor->slice_length || (draws_apart(*tensor) && tile_sums)) {
      std::optional<Means> means;
      if (tensor->slice_length) means.emplace(*tensor, *slice_functions);
      const bool buffered = tensor->layouts || tensor->slice_length % kLanes != 0 || draws_apart(*tensor);
      const int64_t most = (buffered ? kBlock : kMeansBlock) / kTile, blocks = (last - first + most - 1) / most;
      const int64_t size = (last - first + blocks - 1) / blocks;  // as even as can be
      for (int64_t tile = first, end; tile < last; tile = end) {
        end = std::min(last, tile + size);
        run_block(*this, *tensor, tile, end, end == last, means ? &*means : nullptr);
      }
    } else {
      const int64_t count = std::min(last * kTile, tensor->step.numel) - first * kTile;
      if (draws_apart(*tensor)) {
        shard_functions->step(step, *tensor, first * kTile, count);
      } else {
        tensor->kernel(step, tensor->step, part_of(*this, *tensor, first, count));
      }
    }
    begin = tensor_end;
  }
}

double ListWork::sum(int k) const {
  Columns columns;
  for (const TensorWork& tensor : tensors) {
    columns.add_chunks(tile_sums + k * tiles + tensor.first_tile, (tensor.step.numel + kTile - 1) / kTile);
  }
  return columns.sum();
}

}  // namespace lrt::cpu
