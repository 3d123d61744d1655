// The rules, by their records: what is listed here has ops, kernels and schemas.
#pragma once

#include <tuple>

#include "rules/adabelief.h"
#include "rules/adam.h"
#include "rules/average_sgd.h"
#include "rules/lion.h"
#include "rules/nadam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace lrt {

using Rules = std::tuple<  //
    SGDRule,               //
    AdamRule,              //
    RMSpropRule,           //
    RAdamRule,             //
    AdaBeliefRule,         //
    LionRule,              //
    NAdamRule,             //
    AverageSGDRule>;

// Calls visit.operator()<Record>() for each.
template <class Visit>
void for_each_rule(const Visit& visit) {
  [&]<class... Record>(std::tuple<Record...>*) {
    (visit.template operator()<Record>(), ...);
  }(static_cast<Rules*>(nullptr));
}

}  // namespace lrt
