// How a rule describes itself: the record at the end of its header, from which the ops, their decoding and the choice
// of a kernel follow. A record is a struct with
//   kName    the name of the rule and of its ops
//   kStates  the lists of its states, in the order of the ops' arguments
//   kHypers  "float beta1" or "int window": the numbers it takes, in the order of the members of Hyper
//   kFlags   what Kernel's template arguments after the compute type are: "bool nesterov" is an argument of the ops;
//   the
//            name of a state says whether the variant has that state, which then may be missing. All others must be
//            there
//   kScalar  only of a rule with a number of its own per parameter, which advances with the count of steps: its list
//   Hyper    the struct of its numbers; with kScalar, its advance(step, scalar) is what the scalar becomes
//   Kernel   the rule itself: template <class Real, bool... kFlag>, or <class Real> where there are no flags. With a
//            member kOnlyDecay where its optimizers know one way alone in which weight decay enters: others are right,
//            and slower
#pragma once

#include "core/numeric.h"

namespace lrt {

// How weight decay enters: a compile-time choice where a loop is hot, kSelect where one instance serves all.
enum class Decay { kNone, kCoupled, kDecoupled, kSelect };

template <int kCount>
struct Names {
  static constexpr int size = kCount;
  const char* name[kCount ? kCount : 1];
};
template <class... Name>
Names(Name...) -> Names<sizeof...(Name)>;

constexpr bool same_name(const char* a, const char* b) {
  for (; *a == *b; ++a, ++b) {
    if (*a == 0) return true;
  }
  return false;
}

// Whether a flag is an argument of the ops, and not the presence of a state.
constexpr bool is_argument(const char* flag) {
  for (const char* type = "bool "; *type; ++type, ++flag) {
    if (*flag != *type) return false;
  }
  return true;
}

// The place of the state that a flag names.
template <class Record>
constexpr int state_of(const char* flag) {
  int k = 0;
  while (!same_name(Record::kStates.name[k], flag)) ++k;
  return k;
}

// Whether every variant of the rule has its k-th state.
template <class Record>
constexpr bool is_required(int k) {
  for (int f = 0; f < Record::kFlags.size; ++f) {
    if (same_name(Record::kFlags.name[f], Record::kStates.name[k])) return false;
  }
  return true;
}

template <class Record>
struct Flags {
  bool value[Record::kFlags.size ? Record::kFlags.size : 1];
};

// Whether every parameter has a scalar of the rule, beside its count of steps.
template <class Hyper>
constexpr bool kHasScalar = requires(const Hyper& hyper) { hyper.advance(1.0, 1.0); };

// What a parameter's scalar becomes, where the type of the hyper-parameters is not known; null where there is none.
using Advance = double (*)(const void* hyper, double step, double scalar);

template <class Hyper>
constexpr Advance advance_of() {
  if constexpr (kHasScalar<Hyper>) {
    return [](const void* hyper, double step, double scalar) {
      return static_cast<const Hyper*>(hyper)->advance(step, scalar);
    };
  }
  return nullptr;
}

// The rule's constants of one step of one parameter.
template <class Rule, class Hyper>
LRT_HD Rule rule_at(const Hyper& hyper, double step, [[maybe_unused]] double scalar) {
  if constexpr (kHasScalar<Hyper>) {
    return Rule(hyper, step, scalar);
  } else {
    return Rule(hyper, step);
  }
}

// A rule with its flags chosen.
template <class Record, bool... kChosen>
struct Variant {
  using Hyper = typename Record::Hyper;
  template <class Real>
  using Rule = typename Record::template Kernel<Real, kChosen...>;
};
template <class Record>
struct Variant<Record> {
  using Hyper = typename Record::Hyper;
  template <class Real>
  using Rule = typename Record::template Kernel<Real>;
};

// Calls visit.operator()<Variant>() with the variant that the flags choose.
template <class Record, bool... kChosen, class Visit>
auto with_variant(const Flags<Record>& flags, const Visit& visit) {
  if constexpr (sizeof...(kChosen) == Record::kFlags.size) {
    return visit.template operator()<Variant<Record, kChosen...>>();
  } else {
    return flags.value[sizeof...(kChosen)] ? with_variant<Record, kChosen..., true>(flags, visit)
                                           : with_variant<Record, kChosen..., false>(flags, visit);
  }
}

}  // namespace lrt
