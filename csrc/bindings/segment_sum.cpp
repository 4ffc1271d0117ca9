// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_sum.h"

#include "bindings/arguments.h"

namespace rlkern {

static Segments segments_of(int64_t count, int64_t elements, Address offset) {
  const int64_t time = count ? elements / count : 0;  // where there is no offset
  return {count, elements, time, at<const int64_t>(offset)};
}

static void bind_segment_sum(int64_t count, int64_t elements, bool is_double, Address x,
                             Address mask, Address offset, Address total, Address counted,
                             int threads) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    segment_sum<T>(segments_of(count, elements, offset), at<T>(x), at<bool>(mask), at<T>(total),
                   at<T>(counted), threads);
  });
}

static void bind_segment_sum_backward(int64_t count, int64_t elements, bool is_double, Address grad,
                                      Address mask, Address offset, Address grad_x, int threads) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    segment_sum_backward<T>(segments_of(count, elements, offset), at<T>(grad), at<bool>(mask),
                            at<T>(grad_x), threads);
  });
}

RLKERN_BINDINGS(m) {
  m.def("segment_sum", bind_segment_sum);
  m.def("segment_sum_backward", bind_segment_sum_backward);
}

}  // namespace rlkern
