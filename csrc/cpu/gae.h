// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/segments.h"

namespace rlkern {

// Whitening divides by the deviation with n − ddof, and adds eps to the variance.
struct Whitening {
  double eps;
  int64_t ddof;
};

// whitening may be null. 1 read of reward, value and mask, 1 write of advantage and target;
// whitening reads and writes the advantage once more.
template <class T>
void gae(const Sequences& sequences, const GaeRows<T>& rows, const Whitening* whitening,
         int threads);

}  // namespace rlkern
