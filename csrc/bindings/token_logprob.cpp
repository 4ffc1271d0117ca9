// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_logprob.h"

#include "bindings/grid.h"

namespace rlkern {
namespace {

// companions: neither of the two tensors is given where nobody asks for them.
void score(const Tensor& logits, const Tensor& token, const Tensor& mask, const Fields& softmax,
           const Fields& out, const Tensor& mean_logit, const Tensor& is_argmax, int threads) {
  const Grid z = grid("logits", logits);
  const SoftmaxFields s(softmax);
  const Tensor logprob = out.tensor("logprob"), entropy = out.tensor("entropy"),
               row_max = out.tensor("row_max"), log_sum = out.tensor("log_sum"),
               sum_pi_squared = out.tensor("sum_pi_squared");
  with_accumulator(logits.is_double(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = z.rows();
    const Scored<T> scored{logprob.elements<T>("logprob", n), entropy.elements<T>("entropy", n),
                           row_max.elements<T>("row_max", n), log_sum.elements<T>("log_sum", n),
                           sum_pi_squared.elements<T>("sum_pi_squared", n)};
    const Companions<T> companions{mean_logit.elements_or_null<T>("mean_logit", n),
                                   is_argmax.elements_or_null<bool>("is_argmax", n)};
    token_logprob<T>(z, token.elements<int64_t>("token", n), mask.elements_or_null<bool>("mask", n),
                     s.of<T>(n), scored, companions, threads);
  });
}

void bind_token_logprob(const Tensor& logits, const Tensor& token, const Tensor& mask,
                        const Fields& softmax, const Fields& out, int threads) {
  score(logits, token, mask, softmax, out, Tensor(), Tensor(), threads);
}

void bind_token_logprob_companions(const Tensor& logits, const Tensor& token, const Tensor& mask,
                                   const Fields& softmax, const Fields& out,
                                   const Fields& companions, int threads) {
  const Tensor mean_logit = companions.tensor("mean_logit"),
               is_argmax = companions.tensor("is_argmax");
  if (!mean_logit.given() || !is_argmax.given()) {
    throw std::invalid_argument("companions must be two tensors");
  }
  score(logits, token, mask, softmax, out, mean_logit, is_argmax, threads);
}

void bind_token_logprob_backward(const Tensor& logits, const Tensor& token, const Tensor& mask,
                                 const Fields& softmax, const Fields& statistics,
                                 const Fields& upstream, const Tensor& grad_logits, int threads) {
  const Grid z = grid("logits", logits), g = grid_like("grad_logits", grad_logits, z);
  const SoftmaxFields s(softmax);
  const Tensor entropy = statistics.tensor("entropy"), row_max = statistics.tensor("row_max"),
               log_sum = statistics.tensor("log_sum"), grad_logprob = upstream.tensor("logprob"),
               grad_entropy = upstream.tensor("entropy"), grad_lse = upstream.tensor("lse");
  with_accumulator(logits.is_double(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = z.rows();
    const ScoredGradient<T> rows{entropy.elements<T>("entropy", n),
                                 row_max.elements<T>("row_max", n),
                                 log_sum.elements<T>("log_sum", n),
                                 grad_logprob.elements_or_null<T>("upstream logprob", n),
                                 grad_entropy.elements_or_null<T>("upstream entropy", n),
                                 grad_lse.elements_or_null<T>("upstream lse", n)};
    token_logprob_backward<T>(z, token.elements<int64_t>("token", n),
                              mask.elements_or_null<bool>("mask", n), s.of<T>(n), rows, g, threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  define(m, "token_logprob", bind_token_logprob, "logits", "token", "mask", "softmax", "out",
         "threads");
  define(m, "token_logprob_companions", bind_token_logprob_companions, "logits", "token", "mask",
         "softmax", "out", "companions", "threads");
  define(m, "token_logprob_backward", bind_token_logprob_backward, "logits", "token", "mask",
         "softmax", "statistics", "upstream", "grad_logits", "threads");
}

}  // namespace rlkern
