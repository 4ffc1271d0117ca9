// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "math/value_loss.h"

namespace rlkern {

// Sums of one block of elements: the weighted loss, then the metrics.
struct ValueSums {
  double loss = 0;
  double metric[kValueMetrics] = {};
};

// Elements per block: the blocks' sums are added in order, so threads do not change the bits.
constexpr int64_t kValueBlock = 4096;

// Writes the sums of all blocks.
template <class T>
void write_sums(const std::vector<ValueSums>& blocks, T* loss, double* metrics) {
  ValueSums all;
  for (const ValueSums& block : blocks) {
    all.loss += block.loss;
    for (int m = 0; m < kValueMetrics; ++m) all.metric[m] += block.metric[m];
  }
  *loss = T(all.loss);
  for (int m = 0; m < kValueMetrics; ++m) metrics[m] = all.metric[m];
}

template <class T>
struct ValueLossArguments {
  int64_t n;
  const T *value, *target, *old_value, *weight;
  T clip, delta;
  T* loss;
  double* metrics;
  T* grad_value;
};

// The sums of the elements from begin to end, whose gradients are written; by kind.
template <class T>
struct ValueKernels {
  ValueSums (*block[kValueKinds])(const ValueLossArguments<T>&, int64_t begin, int64_t end);
};

struct ValueIsa {
  const char* name;
  ValueKernels<float> of_float;
  ValueKernels<double> of_double;
};

template <class T>
void value_loss(ValueKind kind, const ValueLossArguments<T>& a, int threads);

}  // namespace rlkern
