// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "math/value_loss.h"

namespace rlkern {

// The order is that of BOOTSTRAPS in the reference.
enum class Bootstrap : int { greatest, of_other, twin_min, taken, expected };

// (n, actions) tables of action values, and what belongs to each row.
template <class T>
struct TdLossArguments {
  int64_t n, actions;
  const T* q;
  const int64_t* action;
  const T* reward;
  const bool* done;
  const T *next_q, *other;
  const int64_t* next_action;
  const T* weight;
  T discount, delta;
  T* loss;
  double* metrics;
  T *grad_q, *error;
};

template <class T>
void td_loss(Bootstrap bootstrap, ValueKind kind, const TdLossArguments<T>& a, int threads);

}  // namespace rlkern
