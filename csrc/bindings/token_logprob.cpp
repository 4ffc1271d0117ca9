// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_logprob.h"

#include "bindings/grid.h"

namespace rlkern {

static void bind_token_logprob(const GridTuple& logits, Address token, Address mask,
                               Address inv_temperature, const Addresses<4>& out, int threads) {
  const Grid z = grid(logits);
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    token_logprob<T>(z, at<int64_t>(token), at<bool>(mask), at<T>(inv_temperature),
                     {at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3])}, threads);
  });
}

static void bind_token_logprob_backward(const GridTuple& logits, Address token, Address mask,
                                        Address inv_temperature, const Addresses<6>& in,
                                        const GridTuple& grad_logits, int threads) {
  const Grid z = grid(logits), g = grid(grad_logits);
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    const TokenLogprobGradient<T> rows{at<T>(in[0]), at<T>(in[1]), at<T>(in[2]),
                                       at<T>(in[3]), at<T>(in[4]), at<T>(in[5])};
    token_logprob_backward<T>(z, at<int64_t>(token), at<bool>(mask), at<T>(inv_temperature), rows,
                              g, threads);
  });
}

RLKERN_BINDINGS(m) {
  m.def("token_logprob", bind_token_logprob);
  m.def("token_logprob_backward", bind_token_logprob_backward);
}

}  // namespace rlkern
