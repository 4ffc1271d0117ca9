// SPDX-License-Identifier: Apache-2.0
#include "cpu/reverse_scan.h"

#include "bindings/sequences.h"

namespace rlkern {

// rows: bias, decay, x.
static void bind_reverse_scan(int64_t steps, const SequencesTuple& where, bool is_double,
                              const Addresses<3>& rows, int threads) {
  const Sequences all = sequences(where);
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    check_bounds("reverse_scan", all, steps);
    reverse_scan<T>(
        all, {at<T>(rows[0]), at<T>(rows[1]), at<T>(rows[2]), exceeds_caches(steps * sizeof(T))},
        threads);
  });
}

RLKERN_BINDINGS(m) { m.def("reverse_scan", bind_reverse_scan); }

}  // namespace rlkern
