// See stage.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include "cpu/stage.h"

#include <algorithm>

#include "core/rounding.h"
#include "core/sums.h"

namespace lrt::cpu {
namespace {

bool is_narrow(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kHalf; }

// visit(pointer) with elements of 16 bits from `element` on, as the type that they have.
template <class Visit>
LRT_HD void with_narrow(Dtype dtype, void* base, int64_t element, const Visit& visit) {
  if (dtype == Dtype::kBFloat16) {
    visit(static_cast<BFloat16*>(base) + element);
  } else {
    visit(static_cast<Half*>(base) + element);
  }
}

// Where a row is in float32: in memory, or in a buffer that it is brought to.
LRT_HD float* real_row(Dtype dtype, void* base, int64_t element, int count, float* buffer) {
  if (!is_narrow(dtype)) return static_cast<float*>(base) + element;
  with_narrow(dtype, base, element, [=](const auto* from) {
    for (int i = 0; i < count; ++i) buffer[i] = to_real(from[i]);
  });
  return buffer;
}

LRT_HD void join_row(const BFloat16* high, const int16_t* low, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = joined(high[i], low[i]);
}

// The words that round a row, of whose tile all are there; of a shard's row each element's is drawn alone.
LRT_HD void row_of_words(const TileWords& words, int row, uint32_t* out) {
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = rounding_word(words.word[row / 2][lane], row);
}
void draw_row(const KeepStream& key, const IndexMap& map, int64_t first, int count, uint32_t* out) {
  for (int i = 0; i < count; ++i) {
    const auto [word, row] = element_word<kRoundingRounds>(key, map.element(first + i), Stream::kRounding);
    out[i] = rounding_word(word, row);
  }
}

// By what a row is rounded: words and a multiplier; without words to nearest.
struct RowRounding {
  const uint32_t* words;
  uint32_t multiplier;
};

// A row of 16 bits from float32: all of it.
template <class Storage>
LRT_HD void round_row(const float* from, RowRounding by, int count, Storage* to) {
  if (by.words) {
    for (int i = 0; i < count; ++i) {
      to[i] = stochastically_rounded<Storage>(from[i], rounding_bits(by.words[i], by.multiplier));
    }
  } else {
    for (int i = 0; i < count; ++i) to[i] = from_real<Storage>(from[i]);
  }
}

// The same of the elements that are kept; the signs of `changed`, if it is given, say of which the bits are others now.
template <class Storage>
LRT_HD void round_kept_row(const float* from, RowRounding by, const int32_t* keeps, int count, Storage* to,
                           int32_t* changed) {
  Storage rounded[kLanes];
  round_row(from, by, count, rounded);
  if (changed) {
    for (int i = 0; i < count; ++i) changed[i] = keeps[i] < 0 && rounded[i] != to[i] ? -1 : 0;
  }
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) to[i] = keeps[i] < 0 ? rounded[i] : to[i];
}

LRT_HD void split_kept_row(const float* from, const int32_t* keeps, int count, BFloat16* high, int16_t* low,
                           int32_t* changed) {
  BFloat16 halves[kLanes];
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    const Split own = split(from[i]);
    halves[i] = own.high;
    low[i] = keeps[i] < 0 ? own.low : low[i];
  }
  if (changed) {
    for (int i = 0; i < count; ++i) changed[i] = keeps[i] < 0 && halves[i] != high[i] ? -1 : 0;
  }
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) high[i] = keeps[i] < 0 ? halves[i] : high[i];
}

LRT_HD void compare_row(const float* before, const float* after, int count, int32_t* changed) {
  for (int i = 0; i < count; ++i) changed[i] = same_bits(before[i], after[i]) ? 0 : -1;
}

// Adds a row to the bits of what has changed.
template <class Isa>
LRT_HD void mark_row(const int32_t* changed, int64_t element, int count, uint8_t* bitmap) {
  uint64_t bits = sign_bits<Isa>(changed);
  if (count < kLanes) bits &= (uint64_t{1} << count) - 1;
  uint8_t* const bytes = bitmap + element / 8;
  for (int b = 0; b < (count + 7) / 8; ++b) bytes[b] |= static_cast<uint8_t>(bits >> (8 * b));
}

template <Hint kHint>
void ask_ahead(const StagedRows& rows, int64_t element) {
  const Stage& stage = rows.stage;
  const auto ahead = [&](const void* base, int64_t size) {
    const char* const p = static_cast<const char*>(base) + element * size + rows.prefetch.bytes;
    for (int64_t b = 0; b < kLanes * size; b += 64) ask<kHint>(p + b);
  };
  const auto size_of = [](Dtype dtype) { return is_narrow(dtype) ? 2 : 4; };
  ahead(rows.range.param, size_of(stage.param));
  ahead(rows.range.grad, size_of(stage.grad));
  for (int k = 0; k < rows.states; ++k) ahead(rows.range.states[k], size_of(stage.state));
  if (stage.mirror) ahead(stage.mirror, 2);
  if (stage.low) ahead(stage.low, 2);
}

// The words that round the row that begins at element `begin`.
void bring_words(StagedRows& rows, int64_t begin, int count) {
  if (rows.stage.map) {
    draw_row(rows.key, *rows.stage.map, rows.range.stage_begin + begin, count, rows.buffers.words);
  } else {
    row_of_words(rows.words[begin / kTile % 2], static_cast<int>(begin / kLanes % 8), rows.buffers.words);
  }
}

template <class Isa>
void store_params(StagedRows& rows, const float* params, int64_t element, int count, const int32_t* keeps) {
  const Stage& stage = rows.stage;
  int32_t* const changed = stage.changes ? rows.buffers.changed : nullptr;
  if (stage.low) {
    split_kept_row(params, keeps, count, static_cast<BFloat16*>(rows.range.param) + element, stage.low + element,
                   changed);
  } else if (is_narrow(stage.param)) {
    const RowRounding by = {stage.stochastic ? rows.buffers.words : nullptr, kParamMultiplier};
    with_narrow(stage.param, rows.range.param, element,
                [&](auto* to) { round_kept_row(params, by, keeps, count, to, changed); });
  } else if (stage.mirror) {
    with_narrow(stage.mirror_dtype, stage.mirror, element,
                [&](auto* to) { round_kept_row(params, RowRounding{}, keeps, count, to, changed); });
  } else if (changed) {
    compare_row(rows.buffers.before, params, count, changed);
  }
  if (changed) mark_row<Isa>(changed, element, count, stage.changes);
}

// What is stored is what is summed: of a 16-bit parameter without a master the rounded one.
void add(StagedRows& rows, const StagedRow& row, int64_t element, int count, const int32_t* keeps,
         float (*sums)[kLanes]) {
  const float* const before = rows.buffers.before;
  const float* const after =
      rows.stage.low ? row.params : real_row(rows.stage.param, rows.range.param, element, count, rows.buffers.after);
  for (int i = 0; i < count; ++i) {
    sums[kSlope][i] = sums[kSlope][i] + slope_term(row.grads[i], before[i], after[i]);
    add_metrics<float>(&sums[0][i], kLanes, keeps[i] < 0, before[i], after[i]);
  }
}

}  // namespace

template <class Isa>
StagedRow bring_row(StagedRows& rows, int64_t begin, int count) {
  const Stage& stage = rows.stage;
  const Range& range = rows.range;
  RowBuffers& own = rows.buffers;
  const int64_t element = range.stage_begin + begin;
  switch (rows.prefetch.hint) {
    case Hint::kNone: break;
    case Hint::kSecond: ask_ahead<Hint::kSecond>(rows, element); break;
    case Hint::kFirst:
    case Hint::kWrite: ask_ahead<Hint::kFirst>(rows, element); break;
  }
  StagedRow row = {};
  if (stage.low) {
    join_row(static_cast<const BFloat16*>(range.param) + element, stage.low + element, count, own.param);
    row.params = own.param;
  } else {
    row.params = real_row(stage.param, range.param, element, count, own.param);
  }
  row.grads = real_row(stage.grad, const_cast<void*>(range.grad), element, count, own.grad);
  for (int k = 0; k < rows.states; ++k) {
    row.states[k] = real_row(stage.state, range.states[k], element, count, own.states[k]);
  }
  const bool compares = range.slopes || (stage.changes && stage.param == Dtype::kFloat && !stage.mirror);
  if (compares) std::copy_n(row.params, count, own.before);
  return row;
}

template <class Isa>
void store_row(StagedRows& rows, const StagedRow& row, int64_t begin, int count, const int32_t* keeps,
               float (*sums)[kLanes]) {
  const Stage& stage = rows.stage;
  const int64_t element = rows.range.stage_begin + begin;
  if (stage.rounds()) bring_words(rows, begin, count);
  for (int k = 0; k < rows.states && is_narrow(stage.state); ++k) {
    const RowRounding by = {stage.stochastic_states ? rows.buffers.words : nullptr, kStateMultipliers[k]};
    with_narrow(stage.state, rows.range.states[k], element, [&](auto* to) { round_row(row.states[k], by, count, to); });
  }
  store_params<Isa>(rows, row.params, element, count, keeps);
  if (sums) add(rows, row, element, count, keeps, sums);
}

template StagedRow bring_row<LRT_ISA>(StagedRows&, int64_t, int);
template void store_row<LRT_ISA>(StagedRows&, const StagedRow&, int64_t, int, const int32_t*, float (*)[kLanes]);

}  // namespace lrt::cpu
