// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_objective.h"

#include "bindings/objective.h"
#include "bindings/sequences.h"

namespace rlkern {

static void bind_token_objective(const SequencesTuple& together, bool is_double,
                                 const Addresses<2>& scores, const Addresses<5>& rows,
                                 const ObjectiveTuple& o, const Addresses<4>& out) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    token_objective<T>(sequences(together), at<T>(scores[0]), at<T>(scores[1]), token_rows<T>(rows),
                       objective<T>(o), at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3]));
  });
}

RLKERN_BINDINGS(m) { m.def("token_objective", bind_token_objective); }

}  // namespace rlkern
