// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace rlkern {

// Sequences of `time` elements each, or where `offset` is not null from offset[i] to offset[i + 1].
struct Segments {
  int64_t count, elements, time;
  const int64_t* offset;

  int64_t begin(int64_t i) const { return offset ? offset[i] : i * time; }
};

template <class T>
void segment_sum(const Segments& segments, const T* x, const bool* mask, T* total, T* counted,
                 int threads);

template <class T>
void segment_sum_backward(const Segments& segments, const T* grad, const bool* mask, T* grad_x,
                          int threads);

}  // namespace rlkern
