// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "math/value_loss.h"

namespace rlkern {

// The order is that of BOOTSTRAPS in the reference.
enum class Bootstrap : int { max, double_q, twin_min, sarsa, expected };

template <class T>
struct TdLossArguments {
  int64_t rows, actions;
  const T *q, *reward, *next_q, *other, *weight;  // other, weight: or null
  const int64_t *action, *next_action;            // next_action: or null
  const bool* done;
  T discount, delta, mean;  // mean: the weight of each where there are none
  T* loss;
  double* metrics;
  T *error, *grad_q;

  T weight_of(int64_t i) const { return weight ? weight[i] : mean; }
  bool follows(int64_t i) const { return !done[i] && weight_of(i) != 0; }
};

// Raises std::invalid_argument, before anything is written, for an action outside the table.
template <class T>
void td_loss(Bootstrap bootstrap, ValueKind kind, const TdLossArguments<T>& arguments, int threads);

}  // namespace rlkern
