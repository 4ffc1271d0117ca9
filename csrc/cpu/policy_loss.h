// SPDX-License-Identifier: Apache-2.0
// T is float, or double for double logits.
#pragma once

#include "cpu/rows.h"
#include "cpu/token_objective.h"

namespace rlkern {

// An objective of level token. grad_logits may be null, or the logits.
template <class T>
void policy_loss(const Grid& logits, const int64_t* token, const TokenRows<T>& rows,
                 const Softmax<T>& softmax, const Objective<T>& objective, const Grid* grad_logits,
                 T* loss, T* metrics, int threads);

}  // namespace rlkern
