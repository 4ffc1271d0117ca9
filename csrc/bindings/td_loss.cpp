// SPDX-License-Identifier: Apache-2.0
#include "cpu/td_loss.h"

#include "bindings/arguments.h"

namespace rlkern {
namespace {

// What a bootstrap reads beside next_q, and who gave it.
void require_second(Bootstrap bootstrap, const Tensor& other, const Tensor& next_action) {
  const bool plain = bootstrap == Bootstrap::max, sarsa = bootstrap == Bootstrap::sarsa;
  if (other.given() == (plain || sarsa) || next_action.given() != sarsa) {
    throw std::invalid_argument("td_loss: other and next_action must be those of the bootstrap");
  }
}

void bind_td_loss(const Tensor& q, const Tensor& action, const Tensor& reward, const Tensor& done,
                  const Tensor& next_q, const Tensor& other, const Tensor& next_action,
                  const Tensor& weight, int bootstrap, int kind, double discount, double delta,
                  const Tensor& loss, const Tensor& metrics, const Tensor& error,
                  const Tensor& grad_q, int threads) {
  if (q.ndim() != 2) throw std::invalid_argument("td_loss: q must be (B, A)");
  const int64_t n = q.size(0), table = q.count();
  const Bootstrap how = enumerator("bootstrap", bootstrap, Bootstrap::expected);
  const ValueKind which = enumerator("kind", kind, ValueKind::huber);
  require_second(how, other, next_action);
  with_accumulator(q.is_double(), [&](auto zero) {
    using T = decltype(zero);
    TdLossArguments<T> a;
    a.rows = n;
    a.actions = q.size(1);
    a.q = q.elements<T>("q", table);
    a.action = action.elements<int64_t>("action", n);
    a.reward = reward.elements<T>("reward", n);
    a.done = done.elements<bool>("done", n);
    a.next_q = next_q.elements<T>("next_q", table);
    a.other = other.elements_or_null<T>("other", table);
    a.next_action = next_action.elements_or_null<int64_t>("next_action", n);
    a.weight = weight.elements_or_null<T>("weight", n);
    a.discount = T(discount);
    a.delta = T(delta);
    a.mean = T(1) / T(n > 0 ? n : 1);
    a.loss = loss.elements<T>("loss", 1);
    a.metrics = metrics.elements<double>("metrics", kValueMetrics);
    a.error = error.elements<T>("error", n);
    a.grad_q = grad_q.elements<T>("grad_q", table);
    td_loss<T>(how, which, a, threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  define(m, "td_loss", bind_td_loss, "q", "action", "reward", "done", "next_q", "other",
         "next_action", "weight", "bootstrap", "kind", "discount", "delta", "loss", "metrics",
         "error", "grad_q", "threads");
}

}  // namespace rlkern
