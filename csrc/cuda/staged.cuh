// The CUDA step of tensors that are stored otherwise than they are stepped (lrtricks_fused/step/staged.py), in one
// pass: load -> update -> keep -> store, as step_kernel.cuh. How they are stored is told by a row of the table; a chunk
// that is stored as most are has a loop of its own types, any other one the loop that branches on them, which all
// threads of a block take alike.
#pragma once

#include "cuda/prepare.cuh"
#include "cuda/rounding_draws.cuh"

namespace lrt::cuda {

// How a call's tensors are rounded: whether stochastically.
struct Rounds {
  bool params, states;
  LRT_HD bool any() const { return params || states; }
};

// The types of a row's operands, known when the kernel runs. Units lie anywhere, and the last may be a part of one;
// there may be a mirror, or a split master.
struct AnyDtypes {
  static constexpr bool kWide = false, kMirrored = true, kSplit = true;
  Dtype param, grad, state, mirror;
  LRT_HD explicit AnyDtypes(const TableRow& row)
      : param(static_cast<Dtype>(row.param_dtype)),
        grad(static_cast<Dtype>(row.grad_dtype)),
        state(static_cast<Dtype>(row.state_dtype)),
        mirror(static_cast<Dtype>(row.mirror_dtype)) {}
};
// The same, compiled; all units are whole, at addresses that allow the widest accesses.
template <class Param, class Grad, class State>
struct KnownDtypes {
  static constexpr Dtype param = kDtypeOf<Param>, grad = kDtypeOf<Grad>, state = kDtypeOf<State>;
  static constexpr bool kWide = true, kMirrored = param == Dtype::kFloat, kSplit = param == Dtype::kBFloat16;
  Dtype mirror;
  LRT_HD explicit KnownDtypes(const TableRow& row) : mirror(static_cast<Dtype>(row.mirror_dtype)) {}
  static LRT_HD bool are_of(const AnyDtypes& row) {
    return row.param == param && row.grad == grad && row.state == state;
  }
};
// fp32 masters, their gradients in 16 bits or their mirrors so, or their states; bfloat16, its states in either.
using CommonDtypes = TypeList<KnownDtypes<float, BFloat16, float>, KnownDtypes<float, float, float>,
                              KnownDtypes<float, float, BFloat16>, KnownDtypes<float, BFloat16, BFloat16>,
                              KnownDtypes<BFloat16, BFloat16, float>, KnownDtypes<BFloat16, BFloat16, BFloat16>>;

// A thread's unit, which begins at an element.
template <class Rule, class Dtypes>
struct StagedUnit {
  const TableRow& row;
  const Dtypes& dtypes;
  int64_t begin;
  int count;                                        // of its elements that there are
  Unit param, low, mirror, all_states[kMaxStates];  // as they are stored
  uint8_t marked;                                   // the unit's byte of the bitmap, which no other thread has
  float params[kUnit], grads[kUnit], states[kMaxStates][kUnit];

  // All loads first, and only then what waits for them. Of a mirror that is written as a whole nothing is read.
  template <bool kWide>
  __device__ __forceinline__ Unit load(bool reads_mirror) {
    const auto load = [&](bool narrow, int64_t base) { return load_unit<kWide>(narrow, base, begin, count); };
    param = load(is_narrow(dtypes.param), row.param);
    const Unit grad = load(is_narrow(dtypes.grad), row.grad);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) all_states[k] = load(is_narrow(dtypes.state), row.states[k]);
    if (is_split()) low = load(true, row.low);
    if (is_mirrored() && reads_mirror) mirror = load(true, row.mirror);
    if (row.changes) marked = load_piece<uint8_t, 1>(row.changes, begin / kUnit).value[0];
    return grad;
  }
  template <bool kWide>
  __device__ __forceinline__ void store() const {
    const auto store = [&](bool narrow, int64_t base, const Unit& unit) {
      store_unit<kWide>(narrow, base, begin, count, unit);
    };
    store(is_narrow(dtypes.param), row.param, param);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) store(is_narrow(dtypes.state), row.states[k], all_states[k]);
    if (is_split()) store(true, row.low, low);
    if (is_mirrored()) store(true, row.mirror, mirror);
  }

  __device__ __forceinline__ void to_float(const Unit& grad) {
    to_reals(dtypes.grad, grad, grads);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) to_reals(dtypes.state, all_states[k], states[k]);
    if (is_split()) {
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        params[e] = joined(param.element<BFloat16>(e), static_cast<int16_t>(low.element<uint16_t>(e)));
      }
    } else {
      to_reals(dtypes.param, param, params);
    }
  }

  __device__ __forceinline__ void update(const Rule& rule, const UpdateScalars<float>& scalars) {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      float state[kMaxStates];
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) state[k] = states[k][e];
      params[e] = lrt::update<Decay::kSelect>(rule, scalars, params[e], grads[e], state);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) states[k][e] = state[k];
    }
  }

  __device__ __forceinline__ void round_states(Rounds rounds, const uint32_t* words) {
    constexpr uint32_t kMultipliers[] = {kStateMultipliers[0], kStateMultipliers[1], kStateMultipliers[2]};
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      with_storage(dtypes.state, [&]<class Storage>() {
        all_states[k] = rounded<Storage>(states[k], rounds.states, words, kMultipliers[k]);
      });
    }
  }

  // The parameter, and what lies beside it, of the elements that are kept.
  __device__ __forceinline__ void round_params(Rounds rounds, const uint32_t* words, uint32_t keeps) {
    Unit difference;
    if (is_split()) {
      difference = split_params(keeps);
    } else {
      with_storage(dtypes.param, [&]<class Storage>() {
        const Unit updated = rounded<Storage>(params, rounds.params, words, kParamMultiplier);
        difference = take_kept<Storage>(param, updated, keeps);
      });
    }
    if (is_mirrored()) {
      with_storage(dtypes.mirror, [&]<class Storage>() {
        if constexpr (sizeof(Storage) == 2) {
          difference = take_kept<Storage>(mirror, rounded<Storage>(params, false, words, 0), keeps);
        }
      });
    }
    if (row.changes) mark(elements_of(is_mirrored() || is_narrow(dtypes.param), difference));
  }

 private:
  __device__ __forceinline__ bool is_split() const { return Dtypes::kSplit && row.low; }
  __device__ __forceinline__ bool is_mirrored() const { return Dtypes::kMirrored && row.mirror; }
  __device__ __forceinline__ Unit split_params(uint32_t keeps) {
    Unit high, rest;
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      const Split own = split(params[e]);
      high.put(e, own.high);
      rest.put(e, static_cast<uint16_t>(own.low));
    }
    take_kept<BFloat16>(low, rest, keeps);
    return take_kept<BFloat16>(param, high, keeps);
  }

  __device__ __forceinline__ void mark(uint32_t changed) const {
    if (!(changed & ~marked)) return;
    store_piece<uint8_t, 1>(row.changes, begin / kUnit, {static_cast<uint8_t>(marked | changed)});
  }
};

// Whether the widest accesses serve all operands.
template <class Rule>
LRT_DEVICE bool are_aligned(const TableRow& row) {
  int64_t addresses = row.param | row.grad | row.low | row.mirror;
  for (int k = 0; k < Rule::kStates; ++k) addresses |= row.states[k];
  return addresses % kAccess == 0;
}

// A thread's units of a tile.
template <class Dtypes, class Rule>
LRT_DEVICE void step_units(const Chunk<Rule, float>& chunk, Rounds rounds, int64_t begin, uint32_t keeps,
                           TileWords& words, bool aligned) {
  const Dtypes dtypes(chunk.row);
  const bool reads_mirror = chunk.shared.masked || chunk.shared.word_threshold == 0 || chunk.row.changes;
#pragma unroll 1
  for (int pass = 0; pass < kTilePasses && begin < chunk.end; ++pass) {
    const int64_t rest = chunk.end - begin;
    const int count = Dtypes::kWide || rest >= kUnit ? kUnit : static_cast<int>(rest);
    StagedUnit<Rule, Dtypes> unit = {chunk.row, dtypes, begin, count};
    const bool wide = Dtypes::kWide || (aligned && count == kUnit);
    unit.to_float(wide ? unit.template load<true>(reads_mirror) : unit.template load<false>(reads_mirror));
    unit.update(chunk.rule, chunk.shared.scalars);
    unit.round_states(rounds, words.word[0]);
    unit.round_params(rounds, words.word[0], keeps & ((1u << count) - 1));
    wide ? unit.template store<true>() : unit.template store<false>();
    words.next();
    keeps >>= kUnit;
    begin += kWarp * kUnit;
  }
}

// The tiles of a block's chunk, the last of which may be a part of one, a warp each.
template <class Rule, class Draw, class... Common>
LRT_DEVICE void step_staged_tiles(const Chunk<Rule, float>& chunk, Rounds rounds, int64_t begin, const Draw& draw,
                                  TypeList<Common...>) {
  constexpr int kWarps = kThreads<BFloat16> / kWarp;
  const int thread = static_cast<int>(threadIdx.x) % kWarp;
  const bool aligned = are_aligned<Rule>(chunk.row);
  const bool wide = aligned && chunk.end % kUnit == 0;
  const AnyDtypes dtypes(chunk.row);
#pragma unroll 1
  for (int64_t tile = begin / kTile + threadIdx.x / kWarp; tile * kTile < chunk.end; tile += kWarps) {
    TileWords words = {};
    uint32_t keeps;
    if (rounds.any()) {
      draw_words(draw, tile, thread, words);
      keeps = chunk.shared.masked ? words.keeps(chunk.shared.word_threshold)
                                  : chunk.shared.template all_or_none<uint32_t>();
    } else {
      keeps = draw.template passes<BFloat16>(tile, thread);
    }
    const auto step = [&]<class Dtypes>(bool are_these) {
      if (are_these) step_units<Dtypes>(chunk, rounds, tile * kTile + thread * kUnit, keeps, words, aligned);
      return are_these;
    };
    if (!(step.template operator()<Common>(wide && Common::are_of(dtypes)) || ...)) {
      step.template operator()<AnyDtypes>(true);
    }
  }
}

// Blocks per multiprocessor that the compiler shall make room for: 512 threads of up to 128 registers.
template <bool kMapped, class Rule>
__global__ void __launch_bounds__(kThreads<BFloat16>, 4) staged_kernel(Step call) {
  with_chunk<Rule, float>(call, [&](const Chunk<Rule, float>& chunk, int64_t begin) {
    const Rounds rounds = {call.stochastic, call.stochastic_states};
    if constexpr (kMapped) {
      step_staged_tiles(chunk, rounds, begin, MappedDraw<Rule, float>(chunk, begin, !rounds.any()), CommonDtypes());
    } else {
      step_staged_tiles(chunk, rounds, begin, WholeDraw<Rule, float>(chunk), CommonDtypes());
    }
  });
}

template <class Variant>
const char* launch_staged(const Step& call, const typename Variant::Hyper& hyper) {
  using Rule = typename Variant::template Rule<float>;
  if constexpr (kHasRing<Rule>) {
    return "no kernel for rings that are stored otherwise than they are stepped";
  } else {
    if (call.param == Dtype::kDouble) return "no kernel for float64 that is stored otherwise than it is stepped";
    static Loaded loaded[2];
    void (*const kernel)(Step) = call.mapped ? staged_kernel<true, Rule> : staged_kernel<false, Rule>;
    const char* error = loaded[call.mapped].load(kernel);
    if (!error) error = launch_prepare<Variant, float>(call, hyper);
    if (error || call.chunks == 0) return error;
    return LAUNCH(kernel, call.chunks, kThreads<BFloat16>, call.stream, call);
  }
}

}  // namespace lrt::cuda
