// See stage.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/stage.h"

#include <algorithm>
#include <cstring>

#include "core/pairs.h"
#include "core/rounding.h"
#include "core/sums.h"
#include "cpu/engine.h"
#include "cpu/lanes.h"
#include "cpu/tile_slope.h"

namespace lrt::cpu {
namespace {

constexpr int64_t kStageTiles = 2, kStaged = kStageTiles * kTile;  // that go through the buffers at a time

// What a thread stages tiles with; not on its stack, which may be small. The buffers begin at different places of a page,
// or all would want the same lines of the first cache.
constexpr int64_t kPadded = kStaged + 5 * 16;
struct Buffers {
  alignas(64) float param[kPadded], grad[kPadded], states[kMaxStates][kPadded], before[kPadded];
  alignas(64) int32_t keeps[kPadded], changed[kPadded];
  alignas(64) uint32_t bits[kPadded];
};
thread_local Buffers buffers;

template <class T>
T* at(void* base, int64_t element) {
  return static_cast<T*>(base) + element;
}
template <class T>
const T* at(const void* base, int64_t element) {
  return static_cast<const T*>(base) + element;
}

template <class Storage>
void widen(const Storage* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_real(from[i]);
}

// Elements of one tensor, from `begin` on, that are staged together.
template <class Isa>
class Block {
 public:
  Block(const ListWork& work, const TensorWork& tensor, int64_t first_tile, int64_t count)
      : work_(work),
        tensor_(tensor),
        stage_(*tensor.stage),
        first_tile_(first_tile),
        begin_(first_tile * kTile),
        count_(count) {}

  void run() {
    decide();
    Range part = {.param = params(), .grad = grads(), .states = {}, .first_tile = 0, .count = count_};
    for (int k = 0; k < stage_.states; ++k) part.states[k] = states(k);
    part.keeps = own_.keeps;
    params_ = static_cast<float*>(part.param);
    if (work_.sums || (stage_.changes && stage_.param == Dtype::kFloat)) std::copy_n(params_, count_, own_.before);
    tensor_.kernel(work_.step, tensor_.step, part);
    for (int k = 0; k < stage_.states; ++k) store_states(k);
    store_params();
    if (stage_.mirror) store_mirror();
    if (stage_.changes) store_changes();
    if (work_.sums) store_sums(static_cast<const float*>(part.grad));
  }

 private:
  void decide() {
    if (work_.draws_apart(tensor_)) return decide_shard<Isa>(work_.step, tensor_, begin_, count_, own_.keeps);
    const KeepStream stream = keep_stream(work_.step, tensor_.step);
    for (int64_t done = 0; done < count_; done += kTile) {
      decide_tile<Isa>(stream, work_.step.threshold, tile_of(done), *reinterpret_cast<TileKeeps*>(own_.keeps + done));
    }
  }

  // Of the whole parameter, where its elements are those of tiles.
  int64_t tile_of(int64_t done) const { return tensor_.whole.first_tile + first_tile_ + done / kTile; }

  float* params() {
    void* const whole = tensor_.whole.param;
    if (stage_.param == Dtype::kFloat) return at<float>(whole, begin_);
    if (stage_.low) {
      const BFloat16* const high = at<BFloat16>(whole, begin_);
      const int16_t* const low = stage_.low + begin_;
      for (int64_t i = 0; i < count_; ++i) own_.param[i] = joined(high[i], low[i]);
      return own_.param;
    }
    return widened(stage_.param, whole, own_.param);
  }

  float* grads() {
    // Read only.
    return widened(stage_.grad, const_cast<void*>(tensor_.whole.grad), own_.grad);
  }

  float* states(int k) { return widened(stage_.state, tensor_.whole.states[k], own_.states[k]); }

  // Elements in memory as they are, or in a buffer; of the next ones the lines are asked for.
  float* widened(Dtype dtype, void* whole, float* buffer) {
    switch (dtype) {
      case Dtype::kBFloat16: widen(at<BFloat16>(whole, begin_), count_, buffer); return buffer;
      case Dtype::kHalf: widen(at<Half>(whole, begin_), count_, buffer); return buffer;
      default: return at<float>(whole, begin_);
    }
  }

  // The bits that round the elements, in own_.bits.
  void draw_bits(Stream stream) {
    const KeepStream key = keep_stream(work_.step, tensor_.step);
    if (!tensor_.map.is_whole()) {
      for (int64_t i = 0; i < count_; ++i) {
        own_.bits[i] = keep_bits<kRoundingRounds>(key, tensor_.map.element(begin_ + i), stream);
      }
      return;
    }
    TileWords words;
    for (int64_t done = 0; done < count_; done += kTile) {
      draw_words<Isa, kRoundingRounds>(key, stream, tile_of(done), words);
      for (int row = 0; row < 8; ++row) {
        uint32_t* const to = own_.bits + done + row * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) to[lane] = row_bits(words.word[row / 2][lane], row);
      }
    }
  }

  template <class Storage>
  void round_states(const float* from, Storage* to, Stream stream) {
    if (stage_.stochastic_states) {
      draw_bits(stream);
      for (int64_t i = 0; i < count_; ++i) to[i] = stochastically_rounded<Storage>(from[i], own_.bits[i]);
    } else {
      for (int64_t i = 0; i < count_; ++i) to[i] = from_real<Storage>(from[i]);
    }
  }

  void store_states(int k) {
    void* const whole = tensor_.whole.states[k];
    if (stage_.state == Dtype::kBFloat16) round_states(own_.states[k], at<BFloat16>(whole, begin_), state_stream(k));
    if (stage_.state == Dtype::kHalf) round_states(own_.states[k], at<Half>(whole, begin_), state_stream(k));
  }

  // Of 16 bits: the one where the element is kept, else what was there; and whether that is another.
  template <class Storage>
  void store_kept(Storage* to, int64_t i, Storage rounded) {
    const Storage old = to[i], stored = own_.keeps[i] < 0 ? rounded : old;
    to[i] = stored;
    own_.changed[i] = stored != old ? -1 : 0;
  }

  template <class Storage>
  void round_params(Storage* to) {
    if (stage_.stochastic) {
      draw_bits(Stream::kRounding);
#pragma GCC ivdep
      for (int64_t i = 0; i < count_; ++i) {
        store_kept(to, i, stochastically_rounded<Storage>(params_[i], own_.bits[i]));
      }
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < count_; ++i) store_kept(to, i, from_real<Storage>(params_[i]));
    }
    if (work_.sums) widen(to, count_, own_.param);  // what is stored is what is summed
  }

  void store_params() {
    void* const whole = tensor_.whole.param;
    if (stage_.low) {
      BFloat16* const high = at<BFloat16>(whole, begin_);
      int16_t* const low = stage_.low + begin_;
#pragma GCC ivdep
      for (int64_t i = 0; i < count_; ++i) {
        const Split halves = split(params_[i]);
        store_kept(high, i, halves.high);
        low[i] = own_.keeps[i] < 0 ? halves.low : low[i];
      }
    } else if (stage_.param == Dtype::kBFloat16) {
      round_params(at<BFloat16>(whole, begin_));
    } else if (stage_.param == Dtype::kHalf) {
      round_params(at<Half>(whole, begin_));
    } else if (stage_.changes) {
      for (int64_t i = 0; i < count_; ++i) own_.changed[i] = same_bits(params_[i], own_.before[i]) ? 0 : -1;
    }
  }

  template <class Storage>
  void round_mirror(Storage* to) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count_; ++i) store_kept(to, i, from_real<Storage>(params_[i]));
  }

  void store_mirror() {
    if (stage_.mirror_dtype == Dtype::kBFloat16) return round_mirror(at<BFloat16>(stage_.mirror, begin_));
    round_mirror(at<Half>(stage_.mirror, begin_));
  }

  void store_changes() {
    std::fill(own_.changed + count_, own_.changed + (count_ + kLanes - 1) / kLanes * kLanes, 0);
    uint8_t* const bitmap = stage_.changes + begin_ / 8;
    for (int64_t i = 0; i < count_; i += kLanes) {
      const uint64_t bits = sign_bits<Isa>(own_.changed + i);
      const int64_t bytes = std::min<int64_t>(8, (count_ - i + 7) / 8);
      for (int64_t b = 0; b < bytes; ++b) bitmap[i / 8 + b] |= static_cast<uint8_t>(bits >> (8 * b));
    }
  }

  void store_sums(const float* grads) {
    double* const slopes = work_.tile_sums + tensor_.first_tile + first_tile_;
    for (int64_t tile = 0; tile * kTile < count_; ++tile) {
      float sums[kSums][kLanes] = {};
      const int64_t first = tile * kTile, end = std::min(count_, first + kTile);
      for (int64_t i = first; i < end; ++i) {
        const int lane = i % kLanes;
        sums[kSlope][lane] = sums[kSlope][lane] + slope_term(grads[i], own_.before[i], params_[i]);
        add_metrics<float>(&sums[0][lane], kLanes, own_.keeps[i] < 0, own_.before[i], params_[i]);
      }
      for (int k = 0; k < work_.sums; ++k) slopes[k * work_.tiles + tile] = tile_slope<Isa, float>(sums[k]);
    }
  }

  const ListWork& work_;
  const TensorWork& tensor_;
  const Stage& stage_;
  const int64_t first_tile_, begin_, count_;
  Buffers& own_ = buffers;
  float* params_ = nullptr;
};

}  // namespace

template <class Isa>
void run_staged(const ListWork& work, const TensorWork& tensor, int64_t first, int64_t last) {
  const int64_t end = std::min(last * kTile, tensor.step.numel);
  for (int64_t tile = first; tile < last; tile += kStageTiles) {
    Block<Isa>(work, tensor, tile, std::min(end - tile * kTile, kStaged)).run();
  }
}

template void run_staged<LRT_ISA>(const ListWork&, const TensorWork&, int64_t, int64_t);

}  // namespace lrt::cpu
