// SPDX-License-Identifier: Apache-2.0
// T is float, or double for double logits.
#pragma once

#include "cpu/rows.h"
#include "math/token_objective.h"

namespace rlkern {

template <class T>
struct ObjectiveRows {
  const T *advantage, *weight, *old_logprob, *ref_logprob;  // the last two may be null
};

template <class T>
void policy_loss(const Grid& logits, const int64_t* token, const ObjectiveRows<T>& rows,
                 const T* inv_temperature, const Objective<T>& objective, const Grid* grad_logits,
                 T* loss, T* metrics, int threads);

template <class T>
void token_objective(int64_t n, const T* logprob, const T* entropy, const ObjectiveRows<T>& rows,
                     const Objective<T>& objective, T* loss, T* metrics, T* grad_logprob,
                     T* grad_entropy);

}  // namespace rlkern
