// SPDX-License-Identifier: Apache-2.0
#include "cpu/group_advantage.h"

#include "bindings/arguments.h"

namespace rlkern {

static void bind_group_segments(int64_t n, Address group, Address order, Address offset) {
  py::gil_scoped_release release;
  group_segments(n, at<int64_t>(group), at<int64_t>(order), at<int64_t>(offset));
}

static void bind_group_advantage(int64_t n, bool is_double, const Addresses<4>& rows, int kind,
                                 double eps, int64_t ddof, Address advantage, int threads) {
  const auto [reward, order, offset, length] = rows;
  with_accumulator(
      is_double, [&, reward = reward, order = order, offset = offset, length = length](auto zero) {
        using T = decltype(zero);
        group_advantage<T>(n, at<T>(reward), at<int64_t>(order), at<int64_t>(offset), at<T>(length),
                           AdvantageKind(kind), eps, ddof, at<T>(advantage), threads);
      });
}

RLKERN_BINDINGS(m) {
  m.def("group_segments", bind_group_segments);
  m.def("group_advantage", bind_group_advantage);
}

}  // namespace rlkern
