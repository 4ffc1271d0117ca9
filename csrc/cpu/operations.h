// SPDX-License-Identifier: Apache-2.0
// The operations of this backend, named as in rlkern/reference. T is float, or double for double
// logits.
#pragma once

#include "cpu/rows.h"
#include "math/token_objective.h"

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

template <class T>
void reverse_scan(int64_t rows, int64_t time, const T* bias, const T* decay, T* x, int threads);

enum class AdvantageKind : int { normalized, centered, leave_one_out };

template <class T>
void group_advantage(int64_t n, const T* reward, const int64_t* order, const int64_t* offset,
                     AdvantageKind kind, double eps, int64_t ddof, T* advantage);

}  // namespace rlkern
