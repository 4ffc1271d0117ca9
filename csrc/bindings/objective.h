// SPDX-License-Identifier: Apache-2.0
// An objective and its rows as arguments.
#pragma once

#include <algorithm>

#include "bindings/arguments.h"
#include "cpu/token_objective.h"

namespace rlkern {

// What Python makes once of an Objective of the reference.
struct NumberedObjective {
  Gate gate;
  Level level;
  Kl kl;
  std::array<double, kGateCoefficients> gate_coef;
  double kl_coef, entropy_coef, log_ratio_min, log_ratio_max, kl_max;

  template <class T>
  Objective<T> of() const {
    Objective<T> made{
        gate,     level, kl, {}, T(kl_coef), T(entropy_coef), T(log_ratio_min), T(log_ratio_max),
        T(kl_max)};
    std::copy_n(gate_coef.begin(), kGateCoefficients, made.gate_coef);
    return made;
  }
};

// The Rows of the reference, their tensors found while the GIL is held.
struct RowFields {
  Tensor advantage, weight, old_logprob, ref_logprob, correction;
  Tensor penalty, entropy_weight, nll_weight;

  explicit RowFields(const Fields& x)
      : advantage(x.tensor("advantage")),
        weight(x.tensor("weight")),
        old_logprob(x.tensor("old_logprob")),
        ref_logprob(x.tensor("ref_logprob")),
        correction(x.tensor("correction")),
        penalty(x.tensor("penalty")),
        entropy_weight(x.tensor("entropy_weight")),
        nll_weight(x.tensor("nll_weight")) {}

  template <class T>
  TokenRows<T> of(int64_t n) const {
    return {advantage.elements<T>("advantage", n),
            weight.elements<T>("weight", n),
            old_logprob.elements_or_null<T>("old_logprob", n),
            ref_logprob.elements_or_null<T>("ref_logprob", n),
            correction.elements_or_null<T>("correction", n),
            penalty.elements_or_null<T>("penalty", n),
            entropy_weight.elements_or_null<T>("entropy_weight", n),
            nll_weight.elements_or_null<T>("nll_weight", n)};
  }
};

}  // namespace rlkern
