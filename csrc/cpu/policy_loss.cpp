// SPDX-License-Identifier: Apache-2.0
// Reads each counted row once, writes its gradient once; never materialises log-probabilities of
// the vocabulary. Rows of weight 0 are not read.
#include "cpu/policy_loss.h"

#include <cmath>
#include <limits>

namespace rlkern {
namespace {

template <class T>
Token<T> token_at(const ObjectiveRows<T>& rows, int64_t i, T logprob, T entropy) {
  return {logprob,
          entropy,
          rows.advantage[i],
          rows.weight[i],
          rows.old_logprob ? rows.old_logprob[i] : logprob,
          rows.ref_logprob ? rows.ref_logprob[i] : T(0),
          rows.ref_logprob != nullptr};
}

// Summed in the order of the rows, whatever thread computed them.
template <class T>
void reduce(const std::vector<TokenResult<T>>& results, T* loss, T* metrics) {
  double total = 0, sums[kSummedMetrics] = {};
  T smallest = std::numeric_limits<T>::infinity(), largest = -smallest;
  for (const TokenResult<T>& r : results) {
    total += r.loss;
    for (int m = 0; m < kSummedMetrics; ++m) sums[m] += r.metric[m];
    smallest = std::min(smallest, r.metric[kRatio]);
    largest = std::max(largest, r.metric[kRatio]);
  }
  *loss = T(total);
  for (int m = 0; m < kSummedMetrics; ++m) metrics[m] = T(sums[m]);
  metrics[kRatioMin] = smallest;
  metrics[kRatioMax] = largest;
}

}  // namespace

template <class T>
void policy_loss(const Grid& logits, const int64_t* token, const ObjectiveRows<T>& rows,
                 const T* inv_temperature, const Objective<T>& objective, const Grid* grad_logits,
                 T* loss, T* metrics, int threads) {
  const RowKernels& kernels = chosen_isa().kernels[logits.dtype];
  const RowOrder order(logits.rows(), [&](int64_t i) { return rows.weight[i] != 0; });
  check_tokens("policy_loss", logits, order.counted, token);
  std::vector<TokenResult<T>> results(order.counted.size());
  const bool keep = grad_logits && objective.entropy_coef == 0 && kernels.sums_kept;
  const auto rows_from = [&](int64_t begin, int64_t end) {
    const bool in_row = logits.dtype == kFloat32;
    std::vector<float> scratch(keep && !in_row ? logits.vocab : 0);
    std::vector<float> block_max(keep ? (logits.vocab + kBlock - 1) / kBlock : 0);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = order.counted[k];
      const double rate = inv_temperature ? inv_temperature[i] : 1.0;
      const Row row = row_of(logits, order.counted, k, end, rate);
      const double own = logits.element(i, token[i]);  // before the row is written over
      void* grad = grad_logits ? grad_logits->row(i) : nullptr;
      float* kept = in_row ? static_cast<float*>(grad) : scratch.data();
      const RowSums sums =
          keep ? kernels.sums_kept(row, kept, block_max.data()) : kernels.sums(row);
      const double u = (own - sums.max) * rate, log_sum = std::log(sums.sum);
      const T logprob = T(u - log_sum), entropy = T(log_sum - sums.weighted_sum / sums.sum);
      TokenResult<T>& result = results[k];
      result = token_objective(objective, token_at(rows, i, logprob, entropy));
      if (grad == nullptr) continue;
      const RowSlope slope =
          row_slope(sums, u, logprob, result.grad_logprob, result.grad_entropy, T(0));
      if (keep) {
        kernels.gradient_kept(row, sums, slope, token[i], kept, block_max.data(), grad);
      } else {
        kernels.gradient(row, sums, slope, token[i], grad);
      }
    }
  };
  parallel(order.counted.size(), logits.vocab + kRowOverhead, threads, rows_from);
  if (grad_logits) zero_rows(*grad_logits, order.masked, threads);
  reduce(results, loss, metrics);
}

template <class T>
void token_objective(int64_t n, const T* logprob, const T* entropy, const ObjectiveRows<T>& rows,
                     const Objective<T>& objective, T* loss, T* metrics, T* grad_logprob,
                     T* grad_entropy) {
  std::vector<TokenResult<T>> results;
  results.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    grad_logprob[i] = grad_entropy[i] = 0;
    if (rows.weight[i] == 0) continue;
    results.push_back(token_objective(objective, token_at(rows, i, logprob[i], entropy[i])));
    grad_logprob[i] = results.back().grad_logprob;
    grad_entropy[i] = results.back().grad_entropy;
  }
  reduce(results, loss, metrics);
}

#define RLKERN_INSTANTIATE(T)                                                               \
  template void policy_loss(const Grid&, const int64_t*, const ObjectiveRows<T>&, const T*, \
                            const Objective<T>&, const Grid*, T*, T*, int);                 \
  template void token_objective(int64_t, const T*, const T*, const ObjectiveRows<T>&,       \
                                const Objective<T>&, T*, T*, T*, T*);
RLKERN_INSTANTIATE(float)
RLKERN_INSTANTIATE(double)

}  // namespace rlkern
