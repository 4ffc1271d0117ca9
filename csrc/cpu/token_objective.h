// SPDX-License-Identifier: Apache-2.0
// T is float, or double for double logits.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/sequences.h"
#include "math/token_objective.h"

namespace rlkern {

// See Rows in the reference.
template <class T>
struct TokenRows {
  const T *advantage, *weight, *old_logprob, *ref_logprob, *correction;  // the last three: or null

  bool counts(int64_t i) const { return weight[i] != 0; }
  Token<T> at(int64_t i, T logprob, T entropy) const {
    return {logprob,
            entropy,
            advantage[i],
            weight[i],
            old_logprob ? old_logprob[i] : logprob,
            ref_logprob ? ref_logprob[i] : T(0),
            correction ? correction[i] : T(1),
            ref_logprob != nullptr};
  }
};

// Sums in the order of the results, whatever thread computed them.
template <class T>
void sum_results(const std::vector<TokenResult<T>>& results, T* loss, T* metrics);

template <class T>
void token_objective(const Sequences& sequences, const T* logprob, const T* entropy,
                     const TokenRows<T>& rows, const Objective<T>& objective, T* loss, T* metrics,
                     T* grad_logprob, T* grad_entropy);

}  // namespace rlkern
