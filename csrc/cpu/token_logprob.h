// SPDX-License-Identifier: Apache-2.0
// T is float, or double for double logits.
#pragma once

#include "cpu/rows.h"

namespace rlkern {

template <class T>
struct TokenLogprob {
  T *logprob, *entropy, *row_max, *log_sum;
};

template <class T>
void token_logprob(const Grid& logits, const int64_t* token, const bool* mask,
                   const T* inv_temperature, const TokenLogprob<T>& out, int threads);

template <class T>
struct TokenLogprobGradient {
  const T *entropy, *row_max, *log_sum;             // as the forward left them
  const T *grad_logprob, *grad_entropy, *grad_lse;  // each may be null
};

template <class T>
void token_logprob_backward(const Grid& logits, const int64_t* token, const bool* mask,
                            const T* inv_temperature, const TokenLogprobGradient<T>& in,
                            const Grid& grad_logits, int threads);

}  // namespace rlkern
