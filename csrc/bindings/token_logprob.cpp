// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_logprob.h"

#include "bindings/grid.h"

namespace rlkern {
namespace {

void bind_token_logprob(const GridTuple& logits, Address token, Address mask, const SoftmaxTuple& s,
                        const Addresses<5>& out, int threads) {
  const Grid z = grid(logits);
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    const Scored<T> scored{at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3]),
                           at<T>(out[4])};
    token_logprob<T>(z, at<int64_t>(token), at<bool>(mask), softmax<T>(s), scored, threads);
  });
}

void bind_token_logprob_backward(const GridTuple& logits, Address token, Address mask,
                                 const SoftmaxTuple& s, const Addresses<6>& in,
                                 const GridTuple& grad_logits, int threads) {
  const Grid z = grid(logits), g = grid(grad_logits);
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    const ScoredGradient<T> rows{at<T>(in[0]), at<T>(in[1]), at<T>(in[2]),
                                 at<T>(in[3]), at<T>(in[4]), at<T>(in[5])};
    token_logprob_backward<T>(z, at<int64_t>(token), at<bool>(mask), softmax<T>(s), rows, g,
                              threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  m.def("token_logprob", bind_token_logprob);
  m.def("token_logprob_backward", bind_token_logprob_backward);
}

}  // namespace rlkern
