// SPDX-License-Identifier: Apache-2.0
#include "cpu/policy_loss.h"

#include "bindings/grid.h"
#include "bindings/objective.h"

namespace rlkern {

static void bind_policy_loss(const GridTuple& logits, Address token, const Addresses<5>& rows,
                             const SoftmaxTuple& s, const ObjectiveTuple& o,
                             const std::optional<GridTuple>& grad_logits, const Addresses<2>& out,
                             int threads) {
  const Grid z = grid(logits), g = grad_logits ? grid(*grad_logits) : Grid{};
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    policy_loss<T>(z, at<int64_t>(token), token_rows<T>(rows), softmax<T>(s), objective<T>(o),
                   grad_logits ? &g : nullptr, at<T>(out[0]), at<T>(out[1]), threads);
  });
}

RLKERN_BINDINGS(m) { m.def("policy_loss", bind_policy_loss); }

}  // namespace rlkern
