// SPDX-License-Identifier: Apache-2.0
// T is float, or double for double logits.
#pragma once

#include "cpu/rows.h"

namespace rlkern {

template <class T>
struct Scored {
  T *logprob, *entropy, *row_max, *log_sum, *sum_pi_squared;
};

template <class T>
struct Companions {
  T* mean_logit;  // null where nobody asks for them
  bool* is_argmax;
};

template <class T>
void token_logprob(const Grid& logits, const int64_t* token, const bool* mask,
                   const Softmax<T>& softmax, const Scored<T>& out, const Companions<T>& companions,
                   int threads);

template <class T>
struct ScoredGradient {
  const T *entropy, *row_max, *log_sum;             // as the forward left them
  const T *grad_logprob, *grad_entropy, *grad_lse;  // each may be null
};

template <class T>
void token_logprob_backward(const Grid& logits, const int64_t* token, const bool* mask,
                            const Softmax<T>& softmax, const ScoredGradient<T>& in,
                            const Grid& grad_logits, int threads);

}  // namespace rlkern
