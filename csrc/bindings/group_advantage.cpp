// SPDX-License-Identifier: Apache-2.0
#include "cpu/group_advantage.h"

#include "bindings/arguments.h"

namespace rlkern {

static void bind_group_advantage(int64_t n, bool is_double, Address reward, Address order,
                                 Address offset, int kind, double eps, int64_t ddof,
                                 Address advantage) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    group_advantage<T>(n, at<T>(reward), at<int64_t>(order), at<int64_t>(offset),
                       AdvantageKind(kind), eps, ddof, at<T>(advantage));
  });
}

RLKERN_BINDINGS(m) { m.def("group_advantage", bind_group_advantage); }

}  // namespace rlkern
