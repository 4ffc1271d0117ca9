// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_sum.h"

#include <stdexcept>
#include <string>

#include "cpu/isa.h"
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
  const auto sum = chosen_isa().segments->of<T>().sum;
  parallel(segments.count, mean_length(segments), threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = segments.begin(i);
      const MaskedSum found = sum(x + begin, mask + begin, segments.begin(i + 1) - begin);
      total[i] = T(found.total);
      counted[i] = T(found.count);
    }
  });
}

template <class T>
void segment_sum_backward(const Segments& segments, const T* grad, const bool* mask, T* grad_x,
                          int threads) {
  check_offsets("segment_sum_backward", segments);
  const auto spread = chosen_isa().segments->of<T>().spread;
  parallel(segments.count, mean_length(segments), threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = segments.begin(i);
      spread(grad[i], mask + begin, segments.begin(i + 1) - begin, grad_x + begin);
    }
  });
}

template void segment_sum(const Segments&, const float*, const bool*, float*, float*, int);
template void segment_sum(const Segments&, const double*, const bool*, double*, double*, int);
template void segment_sum_backward(const Segments&, const float*, const bool*, float*, int);
template void segment_sum_backward(const Segments&, const double*, const bool*, double*, int);

}  // namespace rlkern
