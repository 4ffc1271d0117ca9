// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_logprob.h"

#include <cmath>

namespace rlkern {

template <class T>
void token_logprob(const Grid& logits, const int64_t* token, const bool* mask,
                   const T* inv_temperature, const TokenLogprob<T>& out, int threads) {
  const RowKernels& kernels = chosen_isa().kernels[logits.dtype];
  const RowOrder order(logits.rows(), [&](int64_t i) { return mask == nullptr || mask[i]; });
  check_tokens("token_logprob", logits, order.counted, token);
  for (const int64_t i : order.masked)
    out.logprob[i] = out.entropy[i] = out.row_max[i] = out.log_sum[i] = 0;
  parallel(order.counted.size(), logits.vocab + kRowOverhead, threads,
           [&](int64_t begin, int64_t end) {
             for (int64_t k = begin; k < end; ++k) {
               const int64_t i = order.counted[k];
               const double rate = inv_temperature ? inv_temperature[i] : 1.0;
               const RowSums sums = kernels.sums(row_of(logits, order.counted, k, end, rate));
               const double log_sum = std::log(sums.sum);
               out.logprob[i] = T((logits.element(i, token[i]) - sums.max) * rate - log_sum);
               out.entropy[i] = T(log_sum - sums.weighted_sum / sums.sum);
               out.row_max[i] = T(sums.max * rate);
               out.log_sum[i] = T(log_sum);
             }
           });
}

template <class T>
void token_logprob_backward(const Grid& logits, const int64_t* token, const bool* mask,
                            const T* inv_temperature, const TokenLogprobGradient<T>& in,
                            const Grid& grad_logits, int threads) {
  const RowKernels& kernels = chosen_isa().kernels[logits.dtype];
  const RowOrder order(logits.rows(), [&](int64_t i) { return mask == nullptr || mask[i]; });
  check_tokens("token_logprob_backward", logits, order.counted, token);
  zero_rows(grad_logits, order.masked, threads);
  parallel(
      order.counted.size(), logits.vocab + kRowOverhead, threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t i = order.counted[k];
          const double rate = inv_temperature ? inv_temperature[i] : 1.0;
          const double sum = std::exp(double(in.log_sum[i]));
          const double mean_u = double(in.log_sum[i]) - in.entropy[i];
          const RowSums sums{in.row_max[i] / rate, sum, mean_u * sum};
          const double u = (logits.element(i, token[i]) - sums.max) * rate;
          const RowSlope slope = row_slope(
              sums, u, T(u - in.log_sum[i]), in.grad_logprob ? in.grad_logprob[i] : T(0),
              in.grad_entropy ? in.grad_entropy[i] : T(0), in.grad_lse ? in.grad_lse[i] : T(0));
          const Row row = row_of(logits, order.counted, k, end, rate);
          kernels.gradient(row, sums, slope, token[i], grad_logits.row(i));
        }
      });
}

#define RLKERN_INSTANTIATE(T)                                                              \
  template void token_logprob(const Grid&, const int64_t*, const bool*, const T*,          \
                              const TokenLogprob<T>&, int);                                \
  template void token_logprob_backward(const Grid&, const int64_t*, const bool*, const T*, \
                                       const TokenLogprobGradient<T>&, const Grid&, int);
RLKERN_INSTANTIATE(float)
RLKERN_INSTANTIATE(double)

}  // namespace rlkern
