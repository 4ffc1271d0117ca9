// SPDX-License-Identifier: Apache-2.0
// Sweeps of a value loss, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

#include "math/value_loss.h"

namespace rlkern {

// Sums of one block of elements: the weighted loss, then the metrics.
struct ValueSums {
  double loss;
  double metric[kValueMetrics];
};

template <class T>
struct ValueLossArguments {
  int64_t n;
  const T *value, *target, *old_value, *weight;  // old_value: or null
  T clip, delta;
  T* loss;
  double* metrics;
  T* grad_value;
  bool past;  // the caches
};

template <class T>
struct ValueKernels {
  // The sums of the elements from begin to end, whose gradients are written; by kind.
  ValueSums (*block[kValueKinds])(const ValueLossArguments<T>&, int64_t begin, int64_t end);
};

}  // namespace rlkern
