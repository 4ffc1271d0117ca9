// SPDX-License-Identifier: Apache-2.0
#include "cpu/td_loss.h"

#include "bindings/arguments.h"

namespace rlkern {

// The tables that a bootstrap needs beside next_q are its own; the others are None.
static void bind_td_loss(const Tensor& q, const Tensor& action, const Tensor& reward,
                         const Tensor& done, const Tensor& next_q, const Tensor& other,
                         const Tensor& next_action, const Tensor& weight, int bootstrap, int kind,
                         double discount, double delta, const Tensor& loss, const Tensor& metrics,
                         const Tensor& grad_q, const Tensor& error, int threads) {
  const Bootstrap which = enumerator("bootstrap", bootstrap, Bootstrap::expected);
  const ValueKind penalty = enumerator("kind", kind, ValueKind::huber);
  const int64_t n = q.size(0), actions = q.size(1), size = q.count();
  const bool reads_other =
      which == Bootstrap::of_other || which == Bootstrap::twin_min || which == Bootstrap::expected;
  if (q.ndim() != 2 || other.given() != reads_other ||
      next_action.given() != (which == Bootstrap::taken)) {
    throw std::invalid_argument("q must be (B, A), with the tables of the bootstrap beside it");
  }
  with_accumulator(q.is_double(), [&](auto zero) {
    using T = decltype(zero);
    const TdLossArguments<T> a{n,
                               actions,
                               q.elements<T>("q", size),
                               action.elements<int64_t>("action", n),
                               reward.elements<T>("reward", n),
                               done.elements<bool>("done", n),
                               next_q.elements<T>("next_q", size),
                               other.elements_or_null<T>("other", size),
                               next_action.elements_or_null<int64_t>("next_action", n),
                               weight.elements<T>("weight", n),
                               T(discount),
                               T(delta),
                               loss.elements<T>("loss", 1),
                               metrics.elements<double>("metrics", kValueMetrics),
                               grad_q.elements<T>("grad_q", size),
                               error.elements<T>("error", n)};
    td_loss<T>(which, penalty, a, threads);
  });
}

RLKERN_BINDINGS(m) {
  define(m, "td_loss", bind_td_loss, "q", "action", "reward", "done", "next_q", "other",
         "next_action", "weight", "bootstrap", "kind", "discount", "delta", "loss", "metrics",
         "grad_q", "error", "threads");
}

}  // namespace rlkern
