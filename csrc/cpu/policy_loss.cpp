// SPDX-License-Identifier: Apache-2.0
// Reads each counted row once, writes its gradient once; never materialises log-probabilities of
// the vocabulary. Rows of weight 0 are not read.
#include "cpu/policy_loss.h"

#include <cmath>

namespace rlkern {
namespace {

// A thread's room for the exponentials of one row.
struct Stash {
  std::vector<float> scratch, block_max;

  // float32 rows stash where their gradient goes.
  float* open(const OpenRow& row) {
    block_max.resize((row.row.vocab + kBlock - 1) / kBlock);
    if (row.dtype == kFloat32) return static_cast<float*>(row.grad);
    scratch.resize(row.row.vocab);
    return scratch.data();
  }
};

}  // namespace

template <class T>
void policy_loss(const Grid& logits, const int64_t* token, const TokenRows<T>& rows,
                 const Softmax<T>& softmax, const Objective<T>& objective, const Grid* grad_logits,
                 T* loss, T* metrics, int threads) {
  const RowOrder order(logits.rows(), [&](int64_t i) { return rows.counts(i); });
  check_tokens("policy_loss", logits, order.counted, token);
  std::vector<TokenResult<T>> results(order.counted.size());
  const bool may_stash = grad_logits && objective.entropy_coef == 0 && softmax.softcap == 0;
  const auto rows_from = [&](int64_t begin, int64_t end) {
    RowReader<T> reader(logits, token, softmax, grad_logits);
    Stash room;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = order.counted[k];
      const OpenRow open = reader.open(i, k + 1 < end ? order.counted[k + 1] : -1);
      const RowKernels& kernels = open.kernels();
      const bool stashes = may_stash && kernels.sums_stashed;
      float* stash = stashes ? room.open(open) : nullptr;
      const RowSums sums = stashes ? kernels.sums_stashed(open.row, stash, room.block_max.data())
                                   : kernels.sums(open.row);
      const double u = open.token_u(sums), log_sum = std::log(sums.sum);
      const T logprob = T(u - log_sum), entropy = T(log_sum - sums.weighted_sum / sums.sum);
      results[k] = token_objective(objective, rows.at(i, logprob, entropy));
      if (open.grad == nullptr) continue;
      RowSlope slope =
          row_slope(sums, u, logprob, results[k].grad_logprob, results[k].grad_entropy, T(0));
      slope.token *= open.token_cap_slope();
      if (stashes) {
        kernels.gradient_stashed(open.row, sums, slope, open.token, stash, room.block_max.data(),
                                 open.grad);
      } else {
        kernels.gradient(open.row, sums, slope, open.token, open.grad);
      }
      reader.close(i);
    }
  };
  parallel(order.counted.size(), logits.vocab + kRowOverhead, threads, rows_from);
  if (grad_logits) zero_rows(*grad_logits, order.masked, threads);
  sum_results(results, loss, metrics);
}

#define RLKERN_INSTANTIATE(T)                                                                    \
  template void policy_loss(const Grid&, const int64_t*, const TokenRows<T>&, const Softmax<T>&, \
                            const Objective<T>&, const Grid*, T*, T*, int);
RLKERN_INSTANTIATE(float)
RLKERN_INSTANTIATE(double)

}  // namespace rlkern
