// SPDX-License-Identifier: Apache-2.0
// Sweeps of one sequence under a mask, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

namespace rlkern {

struct MaskedSum {
  double total;
  int64_t count;
};

template <class T>
struct SegmentKernels {
  // Over the elements that the mask counts. Element j goes to lane j mod 8: where a sequence lies
  // does not change its bits.
  MaskedSum (*sum)(const T* x, const bool* mask, int64_t n);
  // Writes x where the mask counts and 0 elsewhere.
  void (*spread)(T x, const bool* mask, int64_t n, T* out);
};

}  // namespace rlkern
