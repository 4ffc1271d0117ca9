// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_objective.h"

#include "bindings/objective.h"

namespace rlkern {

// sequences: (how many, tokens of each, or the address of their bounds)
static void bind_token_objective(const std::tuple<int64_t, int64_t, Address>& sequences,
                                 bool is_double, const Addresses<2>& scores,
                                 const Addresses<5>& rows, const ObjectiveTuple& o,
                                 const Addresses<4>& out) {
  const auto [count, time, bounds] = sequences;
  const Sequences together{count, time, at<int64_t>(bounds)};
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    token_objective<T>(together, at<T>(scores[0]), at<T>(scores[1]), token_rows<T>(rows),
                       objective<T>(o), at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3]));
  });
}

RLKERN_BINDINGS(m) { m.def("token_objective", bind_token_objective); }

}  // namespace rlkern
