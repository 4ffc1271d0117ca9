// SPDX-License-Identifier: Apache-2.0
#include "cpu/policy_loss.h"

#include "bindings/grid.h"
#include "bindings/objective.h"

namespace rlkern {

static void bind_policy_loss(const Tensor& logits, const Tensor& token, const Fields& rows,
                             const Fields& softmax, const NumberedObjective& objective,
                             const Tensor& grad_logits, const Tensor& loss, const Tensor& metrics,
                             int threads) {
  const Grid z = grid("logits", logits);
  const Grid g = grad_logits.given() ? grid_like("grad_logits", grad_logits, z) : Grid{};
  const RowFields r(rows);
  const SoftmaxFields s(softmax);
  with_accumulator(logits.is_double(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = z.rows();
    policy_loss<T>(z, token.elements<int64_t>("token", n), r.of<T>(n), s.of<T>(n),
                   objective.of<T>(), grad_logits.given() ? &g : nullptr,
                   loss.elements<T>("loss", 1), metrics.elements<T>("metrics", kMetrics), threads);
  });
}

RLKERN_BINDINGS(m) {
  define(m, "policy_loss", bind_policy_loss, "logits", "token", "rows", "softmax", "objective",
         "grad_logits", "loss", "metrics", "threads");
}

}  // namespace rlkern
