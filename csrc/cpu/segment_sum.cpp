// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_sum.h"

#include <stdexcept>
#include <string>

#include "cpu/rows.h"

namespace rlkern {
namespace {

// Before anything is written: an offset outside the elements would be an address outside them.
void check_offsets(const char* op, const Segments& s) {
  if (!s.offset) return;
  bool ordered = s.offset[0] == 0 && s.offset[s.count] == s.elements;
  for (int64_t i = 0; i < s.count; ++i) ordered &= s.offset[i] <= s.offset[i + 1];
  if (!ordered) {
    throw std::invalid_argument(std::string(op) + ": cu_seqlens must rise from 0 to " +
                                std::to_string(s.elements));
  }
}

int64_t mean_length(const Segments& s) { return s.elements / std::max<int64_t>(s.count, 1) + 1; }

}  // namespace

template <class T>
void segment_sum(const Segments& segments, const T* x, const bool* mask, T* total, T* counted,
                 int threads) {
  check_offsets("segment_sum", segments);
  // Element j of a sequence goes to lane j mod 8: where a sequence lies does not change its bits.
  constexpr int kLanes = 8;
  parallel(segments.count, mean_length(segments), threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = segments.begin(i), n = segments.begin(i + 1) - begin;
      const T* row = x + begin;
      const bool* counts = mask + begin;
      double sum[kLanes] = {};
      int64_t number = 0, j = 0;
      for (; j + kLanes <= n; j += kLanes) {
        for (int k = 0; k < kLanes; ++k) {
          sum[k] += counts[j + k] ? double(row[j + k]) : 0.0;
          number += counts[j + k];
        }
      }
      for (int k = 0; j + k < n; ++k) {
        sum[k] += counts[j + k] ? double(row[j + k]) : 0.0;
        number += counts[j + k];
      }
      total[i] =
          T(((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])));
      counted[i] = T(number);
    }
  });
}

template <class T>
void segment_sum_backward(const Segments& segments, const T* grad, const bool* mask, T* grad_x,
                          int threads) {
  check_offsets("segment_sum_backward", segments);
  parallel(segments.count, mean_length(segments), threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T g = grad[i];
      const int64_t end = segments.begin(i + 1);
      for (int64_t j = segments.begin(i); j < end; ++j) grad_x[j] = mask[j] ? g : T(0);
    }
  });
}

template void segment_sum(const Segments&, const float*, const bool*, float*, float*, int);
template void segment_sum(const Segments&, const double*, const bool*, double*, double*, int);
template void segment_sum_backward(const Segments&, const float*, const bool*, float*, int);
template void segment_sum_backward(const Segments&, const double*, const bool*, double*, int);

}  // namespace rlkern
