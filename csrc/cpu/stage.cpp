// See stage.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/stage.h"

#include <algorithm>

#include "core/pairs.h"
#include "core/sums.h"
#include "cpu/stored_row.h"

namespace lrt::cpu {
namespace {

// What a thread's tile is staged with; not on the stack, which may be small.
struct Buffers {
  alignas(64) float param[kTile], grad[kTile], states[kMaxStates][kTile], before[kTile];
  alignas(64) uint32_t words[kTile];
};
thread_local Buffers buffers;

// body(i) for `count` elements; of whole rows and tiles their number is known to the compiler.
template <int kWhole, class Body>
LRT_HD void for_each(int count, const Body& body) {
  if (count == kWhole) {
#pragma GCC ivdep
    for (int i = 0; i < kWhole; ++i) body(i);
  } else {
    for (int i = 0; i < count; ++i) body(i);
  }
}
// body(first element, count) for rows, of which the last may be a part of one.
template <class Body>
LRT_HD void for_rows(int count, const Body& body) {
  for (int first = 0; first < count; first += kLanes) body(first, std::min(static_cast<int>(kLanes), count - first));
}

// visit.operator()<Storage>() with the type of 16 bits.
template <class Visit>
LRT_HD void with_narrow(Dtype dtype, const Visit& visit) {
  if (dtype == Dtype::kBFloat16) {
    visit.template operator()<BFloat16>();
  } else {
    visit.template operator()<Half>();
  }
}

// The row that a part of a tile ends in is stepped as a whole one.
LRT_HD void fill_row(float* buffer, int count) {
  std::fill(buffer + count, buffer + (count + kLanes - 1) / kLanes * kLanes, 0.0f);
}

// Where a tile is in float32: in memory, or in a buffer that it is brought to. A part of a tile always is.
LRT_HD float* real_tile(Dtype dtype, void* base, int64_t element, int count, float* buffer) {
  if (!is_narrow(dtype)) {
    float* const in_memory = static_cast<float*>(base) + element;
    if (count == kTile) return in_memory;
    std::copy_n(in_memory, count, buffer);
  } else {
    with_narrow(dtype, [&]<class Storage>() {
      const Storage* const from = static_cast<const Storage*>(base) + element;
      for_each<kTile>(count, [=](int i) { buffer[i] = to_real(from[i]); });
    });
  }
  fill_row(buffer, count);
  return buffer;
}

// What was stepped in a buffer, as a part of a tile; a whole one is in memory already.
LRT_HD void store_real(const float* from, int count, float* to) {
  if (from != to) std::copy_n(from, count, to);
}

// By what a row is rounded: words and a multiplier; without words to nearest.
struct RowRounding {
  const uint32_t* words;
  uint32_t multiplier;

  RowRounding at(int first) const { return {words ? words + first : nullptr, multiplier}; }
};

// visit(rounded), where rounded(i) is the i-th element in 16 bits.
template <class Storage, class Visit>
LRT_HD void with_rounded(const float* from, RowRounding by, const Visit& visit) {
  if (by.words) {
    visit([=](int i) __attribute__((always_inline)) {
      return stochastically_rounded<Storage>(from[i], rounding_bits(by.words[i], by.multiplier));
    });
  } else {
    visit([=](int i) __attribute__((always_inline)) { return from_real<Storage>(from[i]); });
  }
}

// Writes rounded(i) to those elements of a row that are kept; the signs of `changed`, if it is given, say of which the
// bits are others now.
template <class Narrow, class Rounded>
LRT_HD void write_kept(const Rounded& rounded, const int32_t* keeps, int count, Narrow* to, int32_t* changed) {
  if (changed) {
    for_each<kLanes>(count, [=](int i) __attribute__((always_inline)) {
      const Narrow stored = kept_bits(keeps[i], rounded(i), to[i]);
      changed[i] = stored == to[i] ? 0 : -1;
      to[i] = stored;
    });
  } else {
    for_each<kLanes>(count,
                     [=](int i) __attribute__((always_inline)) { to[i] = kept_bits(keeps[i], rounded(i), to[i]); });
  }
}

template <class Storage>
LRT_HD void round_kept_row(const float* from, RowRounding by, const int32_t* keeps, int count, Storage* to,
                           int32_t* changed) {
  with_rounded<Storage>(from, by, [=](const auto& rounded) __attribute__((always_inline)) {
    write_kept(rounded, keeps, count, to, changed);
  });
}

LRT_HD void split_kept_row(const float* from, const int32_t* keeps, int count, BFloat16* high, int16_t* low,
                           int32_t* changed) {
  write_kept([=](int i) __attribute__((always_inline)) { return split(from[i]).high; }, keeps, count, high, changed);
  write_kept([=](int i) __attribute__((always_inline)) { return split(from[i]).low; }, keeps, count, low, nullptr);
}

template <Hint kHint>
void ask_tile_ahead(const StagedTiles& tiles, int64_t element) {
  const Stage& stage = tiles.stage;
  const auto ahead = [&](const void* base, int64_t size) {
    const int64_t first = (element + kTile) * size + tiles.prefetch.bytes;
    ask_lines<kHint>(static_cast<const char*>(base) + first, kLanes * size);
  };
  ahead(tiles.range.param, size_of(stage.as.param));
  ahead(tiles.range.grad, size_of(stage.as.grad));
  for (int k = 0; k < tiles.states; ++k) ahead(tiles.range.states[k], size_of(stage.as.state));
  if (stage.mirror) ahead(stage.mirror, 2);
  if (stage.low) ahead(stage.low, 2);
}

// The words that round the tile that begins at element `begin`; of a shard's each element's is drawn alone.
void bring_words(StagedTiles& tiles, int64_t begin, int count) {
  uint32_t* const out = buffers.words;
  if (!tiles.stage.map) {
#pragma GCC unroll 8
    for (int row = 0; row < 8; ++row) {
      for (int lane = 0; lane < kLanes; ++lane) {
        out[row * kLanes + lane] = rounding_word(tiles.words->word[row / 2][lane], row);
      }
    }
    return;
  }
  for (int i = 0; i < count; ++i) {
    const int64_t element = tiles.stage.map->element(tiles.range.stage_begin + begin + i);
    const auto [word, row] = element_word(tiles.key, element);
    out[i] = rounding_word(word, row);
  }
}

// A tile of one state.
void store_states(Dtype dtype, const float* from, RowRounding by, int count, void* base, int64_t element) {
  if (!is_narrow(dtype)) return store_real(from, count, static_cast<float*>(base) + element);
  with_narrow(dtype, [&]<class Storage>() {
    Storage* const to = static_cast<Storage*>(base) + element;
    with_rounded<Storage>(from, by, [=](const auto& rounded) {
      for_each<kTile>(count, [=](int i) __attribute__((always_inline)) { to[i] = rounded(i); });
    });
  });
}

// A tile of parameters, row by row.
template <class Isa>
void store_params(StagedTiles& tiles, const float* params, int64_t element, int count, const int32_t* keeps) {
  const Stage& stage = tiles.stage;
  alignas(64) int32_t changes[kLanes];
  int32_t* const changed = stage.changes ? changes : nullptr;
  const auto by_rows = [&](const auto& store_row) {
    for_rows(count, [&](int first, int row_count) {
      store_row(first, row_count);
      if (changed) mark_row(sign_bits<Isa>(changed), element + first, row_count, stage.changes);
    });
  };
  const auto rounded = [&](Dtype dtype, void* base, RowRounding by) {
    with_narrow(dtype, [&]<class Storage>() {
      by_rows([&, to = static_cast<Storage*>(base) + element](int first, int row_count) {
        round_kept_row(params + first, by.at(first), keeps + first, row_count, to + first, changed);
      });
    });
  };
  if (stage.as.param == Dtype::kFloat) store_real(params, count, static_cast<float*>(tiles.range.param) + element);
  if (stage.low) {
    by_rows([&, high = static_cast<BFloat16*>(tiles.range.param) + element](int first, int row_count) {
      split_kept_row(params + first, keeps + first, row_count, high + first, stage.low + element + first, changed);
    });
  } else if (is_narrow(stage.as.param)) {
    rounded(stage.as.param, tiles.range.param, {stage.as.stochastic ? buffers.words : nullptr, kParamMultiplier});
  } else if (stage.mirror) {
    rounded(stage.as.mirror, stage.mirror, {});
  } else if (changed) {
    by_rows([&](int first, int) {
      for (int i = 0; i < kLanes; ++i) {
        changes[i] = same_bits(buffers.before[first + i], params[first + i]) ? 0 : -1;
      }
    });
  }
}

// What is stored is what is summed: of a 16-bit parameter without a master the rounded one.
void add(StagedTiles& tiles, const StagedTile& tile, int64_t element, int count, const int32_t* keeps,
         float (*sums)[kLanes]) {
  const float* const before = buffers.before;
  const float* const after =
      tiles.stage.low ? tile.params : real_tile(tiles.stage.as.param, tiles.range.param, element, count, buffers.param);
  for (int i = 0; i < count; ++i) {
    const int lane = i % kLanes;
    sums[kSlope][lane] = sums[kSlope][lane] + slope_term(tile.grads[i], before[i], after[i]);
    add_metrics<float>(&sums[0][lane], kLanes, keeps[i] < 0, before[i], after[i]);
  }
}

}  // namespace

template <class Isa>
StagedTile bring_tile(StagedTiles& tiles, int64_t begin, int count) {
  const Stage& stage = tiles.stage;
  const Range& range = tiles.range;
  Buffers& own = buffers;
  const int64_t element = range.stage_begin + begin;
  StagedTile tile = {};
  if (stage.low) {
    const BFloat16* const high = static_cast<const BFloat16*>(range.param) + element;
    for_each<kTile>(count, [&, low = stage.low + element](int i) { own.param[i] = joined(high[i], low[i]); });
    fill_row(own.param, count);
    tile.params = own.param;
  } else {
    tile.params = real_tile(stage.as.param, range.param, element, count, own.param);
  }
  tile.grads = real_tile(stage.as.grad, const_cast<void*>(range.grad), element, count, own.grad);
  for (int k = 0; k < tiles.states; ++k) {
    tile.states[k] = real_tile(stage.as.state, range.states[k], element, count, own.states[k]);
  }
  const bool compares = range.slopes || (stage.changes && stage.as.param == Dtype::kFloat && !stage.mirror);
  if (compares) std::copy_n(tile.params, count, own.before);
  return tile;
}

template <class Isa>
void ask_next_tile(const StagedTiles& tiles, int64_t begin) {
  const int64_t element = tiles.range.stage_begin + begin;
  switch (tiles.prefetch.hint) {
    case Hint::kNone: break;
    case Hint::kSecond: ask_tile_ahead<Hint::kSecond>(tiles, element); break;
    case Hint::kFirst:
    case Hint::kWrite: ask_tile_ahead<Hint::kFirst>(tiles, element); break;
  }
}

template <class Isa>
void store_tile(StagedTiles& tiles, const StagedTile& tile, int64_t begin, int count, const int32_t* keeps,
                float (*sums)[kLanes]) {
  const Stage& stage = tiles.stage;
  const int64_t element = tiles.range.stage_begin + begin;
  if (stage.as.rounds()) bring_words(tiles, begin, count);
  for (int k = 0; k < tiles.states; ++k) {
    const RowRounding by = {stage.as.stochastic_states ? buffers.words : nullptr, kStateMultipliers[k]};
    store_states(stage.as.state, tile.states[k], by, count, tiles.range.states[k], element);
  }
  store_params<Isa>(tiles, tile.params, element, count, keeps);
  if (sums) add(tiles, tile, element, count, keeps, sums);
}

template StagedTile bring_tile<LRT_ISA>(StagedTiles&, int64_t, int);
template void ask_next_tile<LRT_ISA>(const StagedTiles&, int64_t);
template void store_tile<LRT_ISA>(StagedTiles&, const StagedTile&, int64_t, int, const int32_t*, float (*)[kLanes]);

}  // namespace lrt::cpu
