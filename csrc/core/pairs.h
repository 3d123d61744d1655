// The storage types by their codes, and the pairs of them, of parameters and of their states, that there are kernels
// for.
#pragma once

#include "core/dtype.h"

namespace lrt {

template <class Storage>
constexpr Dtype kDtypeOf = Dtype::kFloat;
template <>
constexpr Dtype kDtypeOf<double> = Dtype::kDouble;
template <>
constexpr Dtype kDtypeOf<BFloat16> = Dtype::kBFloat16;
template <>
constexpr Dtype kDtypeOf<Half> = Dtype::kHalf;

// visit.operator()<Storage>() with the type of that code.
template <class Visit>
constexpr auto with_dtype(Dtype dtype, const Visit& visit) {
  switch (dtype) {
    case kDtypeOf<double>: return visit.template operator()<double>();
    case kDtypeOf<BFloat16>: return visit.template operator()<BFloat16>();
    case kDtypeOf<Half>: return visit.template operator()<Half>();
    case kDtypeOf<float>: break;
  }
  return visit.template operator()<float>();
}

constexpr int64_t size_of(Dtype dtype) {
  return with_dtype(dtype, [&]<class Storage>() { return static_cast<int64_t>(sizeof(Storage)); });
}

// Whether it has 16 bits.
LRT_HD constexpr bool is_narrow(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kHalf; }

template <class ParamType, class StateType>
struct Pair {
  using Param = ParamType;
  using State = StateType;
};

template <class...>
struct TypeList {};
using Pairs = TypeList<Pair<float, float>, Pair<double, double>, Pair<BFloat16, float>, Pair<BFloat16, BFloat16>,
                       Pair<Half, float>, Pair<Half, Half>>;

// visit.operator()<Param, State>() with the types of these codes; `otherwise` where the pair is not among them.
template <class Result, class Visit, class... P>
constexpr Result with_pair(Dtype param, Dtype state, Result otherwise, const Visit& visit, TypeList<P...>) {
  Result result = otherwise;
  const auto is_it = [&]<class One>(One*) {
    if (kDtypeOf<typename One::Param> != param || kDtypeOf<typename One::State> != state) return false;
    result = visit.template operator()<typename One::Param, typename One::State>();
    return true;
  };
  (void)(is_it(static_cast<P*>(nullptr)) || ...);
  return result;
}

template <class Result, class Visit>
constexpr Result with_pair(Dtype param, Dtype state, Result otherwise, const Visit& visit) {
  return with_pair<Result>(param, state, otherwise, visit, Pairs{});
}

}  // namespace lrt
