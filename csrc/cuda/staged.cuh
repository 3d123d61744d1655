// The CUDA step of tensors that are stored otherwise than they are stepped (lrtricks_fused/step/staged.py), in one
// pass: load -> update -> keep -> store, as step_kernel.cuh, with the types of storage known when the kernel runs. They
// are the same for all threads of a block, as are the branches on them: between these all is float, in registers.
#pragma once

#include "cuda/prepare.cuh"
#include "cuda/rounding_draws.cuh"

namespace lrt::cuda {

// How a call's tensors are rounded: whether stochastically.
struct Rounds {
  bool params, states;
};
struct Dtypes {
  Dtype param, grad, state, mirror;
  LRT_HD explicit Dtypes(const TableRow& row)
      : param(static_cast<Dtype>(row.param_dtype)),
        grad(static_cast<Dtype>(row.grad_dtype)),
        state(static_cast<Dtype>(row.state_dtype)),
        mirror(static_cast<Dtype>(row.mirror_dtype)) {}
};

// A thread's unit, which begins at an element.
template <class Rule>
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
    if (row.low) low = load(true, row.low);
    if (row.mirror && reads_mirror) mirror = load(true, row.mirror);
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
    if (row.low) store(true, row.low, low);
    if (row.mirror) store(true, row.mirror, mirror);
  }

  __device__ __forceinline__ void to_float(const Unit& grad) {
    to_reals(dtypes.grad, grad, grads);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) to_reals(dtypes.state, all_states[k], states[k]);
    if (row.low) {
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
    if (row.low) {
      difference = split_params(keeps);
    } else {
      with_storage(dtypes.param, [&]<class Storage>() {
        const Unit updated = rounded<Storage>(params, rounds.params, words, kParamMultiplier);
        difference = take_kept<Storage>(param, updated, keeps);
      });
    }
    if (row.mirror) {
      with_storage(dtypes.mirror, [&]<class Storage>() {
        if constexpr (sizeof(Storage) == 2) {
          difference = take_kept<Storage>(mirror, rounded<Storage>(params, false, words, 0), keeps);
        }
      });
    }
    if (row.changes) mark(elements_of(row.mirror || is_narrow(dtypes.param), difference));
  }

 private:
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

// The tiles of a block's chunk, the last of which may be a part of one, a warp each.
template <class Rule, class Draw>
LRT_DEVICE void step_staged_tiles(const Chunk<Rule, float>& chunk, Rounds rounds, int64_t begin, const Draw& draw) {
  constexpr int kWarps = kThreads<BFloat16> / kWarp;
  const int thread = static_cast<int>(threadIdx.x) % kWarp;
  const Dtypes dtypes(chunk.row);
  const bool aligned = are_aligned<Rule>(chunk.row);
  const bool keeps_all = !chunk.shared.masked && chunk.shared.word_threshold != 0;
#pragma unroll 1
  for (int64_t tile = begin / kTile + threadIdx.x / kWarp; tile * kTile < chunk.end; tile += kWarps) {
    uint32_t keeps = draw.template passes<BFloat16>(tile, thread);
    TileWords words = {};
    if (rounds.params || rounds.states) draw_words(draw, tile, thread, words);
    int64_t element = tile * kTile + thread * kUnit;
#pragma unroll 1
    for (int pass = 0; pass < kTilePasses && element < chunk.end; ++pass) {
      const int64_t rest = chunk.end - element;
      StagedUnit<Rule> unit = {chunk.row, dtypes, element, rest < kUnit ? static_cast<int>(rest) : kUnit};
      const bool wide = aligned && unit.count == kUnit, reads_mirror = !keeps_all || chunk.row.changes;
      unit.to_float(wide ? unit.template load<true>(reads_mirror) : unit.template load<false>(reads_mirror));
      unit.update(chunk.rule, chunk.shared.scalars);
      unit.round_states(rounds, words.word[0]);
      unit.round_params(rounds, words.word[0], keeps & ((1u << unit.count) - 1));
      wide ? unit.template store<true>() : unit.template store<false>();
      words.next();
      keeps >>= kUnit;
      element += kWarp * kUnit;
    }
  }
}

// Blocks per multiprocessor that the compiler shall make room for: 512 threads of up to 128 registers.
template <bool kMapped, class Rule>
__global__ void __launch_bounds__(kThreads<BFloat16>, 4) staged_kernel(Step call) {
  with_chunk<Rule, float>(call, [&](const Chunk<Rule, float>& chunk, int64_t begin) {
    const Rounds rounds = {call.stochastic, call.stochastic_states};
    if constexpr (kMapped) {
      step_staged_tiles(chunk, rounds, begin, MappedDraw<Rule, float>(chunk, begin));
    } else {
      step_staged_tiles(chunk, rounds, begin, WholeDraw<Rule, float>(chunk));
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
    const char* error = launch_prepare<Variant, float>(call, hyper);
    if (error || call.chunks == 0) return error;
    const auto launch = [&](auto kernel) { return LAUNCH(kernel, call.chunks, kThreads<BFloat16>, call.stream, call); };
    return call.mapped ? launch(staged_kernel<true, Rule>) : launch(staged_kernel<false, Rule>);
  }
}

}  // namespace lrt::cuda
