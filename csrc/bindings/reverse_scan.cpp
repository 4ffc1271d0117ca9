// SPDX-License-Identifier: Apache-2.0
#include "cpu/reverse_scan.h"

#include "bindings/arguments.h"

namespace rlkern {

static void bind_reverse_scan(int64_t rows, int64_t time, bool is_double, Address bias,
                              Address decay, Address x, int threads) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    reverse_scan<T>(rows, time, at<T>(bias), at<T>(decay), at<T>(x), threads);
  });
}

RLKERN_BINDINGS(m) { m.def("reverse_scan", bind_reverse_scan); }

}  // namespace rlkern
