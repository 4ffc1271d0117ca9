// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_logprob.h"

#include <cmath>

namespace rlkern {
namespace {

template <class T>
void write_companions(const Grid& logits, int64_t i, int64_t token, const Softmax<T>& softmax,
                      const Companions<T>& companions) {
  const Row whole{logits.row(i), nullptr, logits.vocab, softmax.inv_temperature_of(i),
                  softmax.softcap};
  const bool absent = token == kAbsent;
  const RowCompanions found = chosen_isa().companions[logits.dtype](whole, absent ? 0 : token);
  companions.mean_logit[i] = T(found.mean_logit);
  companions.is_argmax[i] = found.is_argmax && !absent;
}

}  // namespace

template <class T>
void token_logprob(const Grid& logits, const int64_t* token, const bool* mask,
                   const Softmax<T>& softmax, const Scored<T>& out, const Companions<T>& companions,
                   int threads) {
  const RowOrder order(logits.rows(), [&](int64_t i) { return mask == nullptr || mask[i]; });
  check_tokens("token_logprob", logits, order.counted, token);
  for (const int64_t i : order.masked) {
    for (T* x : {out.logprob, out.entropy, out.row_max, out.log_sum, out.sum_pi_squared}) x[i] = 0;
    if (companions.mean_logit == nullptr) continue;
    companions.mean_logit[i] = 0;
    companions.is_argmax[i] = false;
  }
  const auto rows_from = [&](int64_t begin, int64_t end) {
    RowReader<T> reader(logits, token, softmax, nullptr);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = order.counted[k];
      const OpenRow open = reader.open(i, -1);
      const RowSums sums = open.kernels().sums(open.row);
      const double log_sum = std::log(sums.sum);
      out.logprob[i] = T(open.token_u(sums) - log_sum);
      out.entropy[i] = T(log_sum - sums.weighted_sum / sums.sum);
      out.row_max[i] = T(sums.max * open.row.inv_temperature);
      out.log_sum[i] = T(log_sum);
      out.sum_pi_squared[i] = T(sums.square_sum / (sums.sum * sums.sum));
      if (companions.mean_logit) write_companions(logits, i, token[i], softmax, companions);
    }
  };
  parallel(order.counted.size(), logits.vocab + kRowOverhead, threads, rows_from);
}

template <class T>
void token_logprob_backward(const Grid& logits, const int64_t* token, const bool* mask,
                            const Softmax<T>& softmax, const ScoredGradient<T>& in,
                            const Grid& grad_logits, int threads) {
  const RowOrder order(logits.rows(), [&](int64_t i) { return mask == nullptr || mask[i]; });
  check_tokens("token_logprob_backward", logits, order.counted, token);
  const auto rows_from = [&](int64_t begin, int64_t end) {
    RowReader<T> reader(logits, token, softmax, &grad_logits);
    // Backwards: the rows that a forward read last may still be in a cache.
    for (int64_t k = end - 1; k >= begin; --k) {
      const int64_t i = order.counted[k];
      const OpenRow open = reader.open(i, k > begin ? order.counted[k - 1] : -1);
      const double sum = std::exp(double(in.log_sum[i]));
      const double mean_u = double(in.log_sum[i]) - in.entropy[i];
      const RowSums sums{in.row_max[i] / open.row.inv_temperature, sum, mean_u * sum, 0};
      const double u = open.token_u(sums);
      RowSlope slope = row_slope(
          sums, u, T(u - in.log_sum[i]), in.grad_logprob ? in.grad_logprob[i] : T(0),
          in.grad_entropy ? in.grad_entropy[i] : T(0), in.grad_lse ? in.grad_lse[i] : T(0));
      slope.token *= open.token_cap_slope();
      open.kernels().gradient(open.row, sums, slope, open.token, open.grad);
      reader.close(i);
    }
  };
  parallel(order.counted.size(), logits.vocab + kRowOverhead, threads, rows_from);
  zero_rows(grad_logits, order.masked, threads);
}

#define RLKERN_INSTANTIATE(T)                                                                    \
  template void token_logprob(const Grid&, const int64_t*, const bool*, const Softmax<T>&,       \
                              const Scored<T>&, const Companions<T>&, int);                      \
  template void token_logprob_backward(const Grid&, const int64_t*, const bool*,                 \
                                       const Softmax<T>&, const ScoredGradient<T>&, const Grid&, \
                                       int);
RLKERN_INSTANTIATE(float)
RLKERN_INSTANTIATE(double)

}  // namespace rlkern
