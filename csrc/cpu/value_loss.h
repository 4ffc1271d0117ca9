// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/value_kernels.h"

namespace rlkern {

// Elements per block: the blocks' sums are added in order, so threads do not change the bits.
constexpr int64_t kValueBlock = 4096;

// Writes the sums of all blocks.
template <class T>
void write_sums(const std::vector<ValueSums>& blocks, T* loss, double* metrics) {
  ValueSums all = {};
  for (const ValueSums& sums : blocks) {
    all.loss += sums.loss;
    for (int m = 0; m < kValueMetrics; ++m) all.metric[m] += sums.metric[m];
  }
  *loss = T(all.loss);
  std::copy_n(all.metric, kValueMetrics, metrics);
}

template <class T>
void value_loss(ValueKind kind, const ValueLossArguments<T>& arguments, int threads);

}  // namespace rlkern
