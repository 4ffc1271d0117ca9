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
  const T *advantage, *weight;
  const T *old_logprob, *ref_logprob, *correction, *penalty, *entropy_weight,
      *nll_weight;  // or null

  bool counts(int64_t i) const { return weight[i] != 0; }
  T of_entropy(int64_t i) const { return entropy_weight ? entropy_weight[i] : weight[i]; }
  Token<T> at(int64_t i, T logprob, T entropy) const {
    return {logprob,
            entropy,
            advantage[i],
            weight[i],
            old_logprob ? old_logprob[i] : logprob,
            ref_logprob ? ref_logprob[i] : T(0),
            correction ? correction[i] : T(1),
            penalty ? penalty[i] : T(0),
            of_entropy(i),
            nll_weight ? nll_weight[i] : T(0),
            ref_logprob != nullptr};
  }
};

// Sums in the order of the results, whatever thread computed them.
template <class T>
void sum_results(const TokenResult<T>* results, size_t count, T* loss, T* metrics);

template <class T>
void token_objective(const Sequences& sequences, const T* logprob, const T* entropy,
                     const TokenRows<T>& rows, const Objective<T>& objective, T* loss, T* metrics,
                     T* grad_logprob, T* grad_entropy);

}  // namespace rlkern
